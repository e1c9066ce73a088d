// Local training of devices, one at a time, with all that a device needs in the cache.
//
// The same arithmetic as `local_training` over `TransformerEncoder`, in float32: S steps of SGD from the
// shared weights, forward and backward pass written out. Rows are as many as a device has; nothing is
// padded. client/native_step.py builds this file and calls `native_train`.

#include <map>
#include <memory>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "native_layers.h"

namespace native {

// What to train, as client/native_step.py lays it out; arrays as in `Examples`, of all devices.
struct Task {
    Index size;  // of this structure, in bytes

    // The encoder.
    Index width, dimension, heads, layers, scales, blocks, kinds;
    Index weights;                      // numbers in all parameters
    const char* names;                  // of the parameters, with spaces between them
    const Index* offsets;               // [parameters + 1] into the weights, in the order of the names
    const float* shared;                // [weights], where every device starts
    const float* slopes;                // [heads]
    const Index* bounds;                // [blocks, 2], columns of the feature blocks
    // The examples.
    Index items;
    const float *vectors, *priors;      // [items, dimension], [items]
    const Index* window_offsets;
    const std::int32_t* window_items;
    const float* window_gaps;
    const std::int16_t* window_types;
    const Index *query_offsets, *query_positions;
    const float* query_sums;            // [queries, scales, dimension]
    const Index *target_offsets, *target_queries;
    const std::int32_t* target_items;
    const Index *known_offsets;         // into known_places, by device
    const std::int32_t* known_places;   // drawn items that the device knows, as step · negatives + place
    // The training.
    Index steps, negatives;
    const float* negative_columns;      // [steps, dimension, negatives]
    const float* negative_rows;         // [steps, negatives, dimension]
    const float* negative_bias;         // [steps, negatives]
    float rate, epsilon, known_logit;
};

struct Block {
    Affine attention_norm, qkv, project, feed_norm, widen, narrow;
};

struct Encoder {
    Parameter adapter;
    Affine gap;
    Parameter kind, gains;
    Affine norm, out;
    Parameter read;
    std::vector<Block> layers;
};

// Says of every parameter its name, its place in the encoder and its size.
template <class Visit>
void each_parameter(const Task& task, Encoder& encoder, Visit visit) {
    const Index width = task.width;
    const auto affine = [&](const std::string& name, Affine& layer, Index in, Index out) {
        visit(name + ".weight", layer.weight, in * out);
        visit(name + ".bias", layer.bias, out);
    };
    visit("adapter.weight", encoder.adapter, task.dimension * width);
    affine("gap", encoder.gap, 1, width);
    visit("kind.weight", encoder.kind, task.kinds * width);
    visit("gains.weight", encoder.gains, task.scales * (1 + task.blocks));
    affine("norm", encoder.norm, 1, width);
    affine("out", encoder.out, width, task.dimension);
    visit("read.weight", encoder.read, width * width);
    encoder.layers.resize(task.layers);
    for (Index l = 0; l < task.layers; ++l) {
        const std::string path = "layers." + std::to_string(l) + ".";
        Block& block = encoder.layers[l];
        affine(path + "attention_norm", block.attention_norm, 1, width);
        affine(path + "qkv", block.qkv, width, 3 * width);
        affine(path + "project", block.project, width, width);
        affine(path + "feed_norm", block.feed_norm, 1, width);
        affine(path + "widen", block.widen, width, 2 * width);
        affine(path + "narrow", block.narrow, 2 * width, width);
    }
}

// The encoder over a device's own numbers. Both sides must mean the same parameters.
Encoder bind(const Task& task, const float* value, float* update) {
    std::map<std::string, std::pair<Index, Index>> ranges;
    std::istringstream names(task.names);
    const Index* offset = task.offsets;
    for (std::string name; names >> name; ++offset) ranges[name] = {offset[0], offset[1]};
    Encoder encoder;
    each_parameter(task, encoder, [&](const std::string& name, Parameter& parameter, Index size) {
        const auto range = ranges.extract(name);
        if (range.empty() || range.mapped().second - range.mapped().first != size)
            throw std::invalid_argument("'" + name + "' must have " + std::to_string(size) +
                                        " weights");
        parameter = {value + range.mapped().first, update + range.mapped().first};
    });
    if (!ranges.empty()) throw std::invalid_argument("unknown '" + ranges.begin()->first + "'");
    return encoder;
}

class Floats {
  public:
    explicit Floats(Index count)
        : numbers_(static_cast<float*>(::operator new(sizeof(float) * (count + 1), ALIGNED))) {}
    operator float*() const { return numbers_.get(); }

  private:
    static constexpr std::align_val_t ALIGNED{64};
    struct Free {
        void operator()(float* p) const { ::operator delete(p, ALIGNED); }
    };
    std::unique_ptr<float, Free> numbers_;
};

// Most rows that a device has.
struct Rows {
    Index events, queries, targets;
};

struct NormedRows {
    Floats unit, inverse, out;

    NormedRows(Index rows, Index width) : unit(rows * width), inverse(rows), out(rows * width) {}
    Normed kept() const { return {unit, inverse}; }
};

// What a block keeps for its backward pass.
struct BlockRows {
    NormedRows attention_norm, feed_norm;
    Floats qkv, shares, mixed, fed, slope;

    BlockRows(Index rows, Index width, Index heads)
        : attention_norm(rows, width),
          feed_norm(rows, width),
          qkv(rows * 3 * width),
          shares(heads * rows * Attention::stride(rows)),
          mixed(rows * width),
          fed(rows * 2 * width),
          slope(rows * 2 * width) {}
};

// Trains devices one after another in the same memory.
class Worker {
  public:
    Worker(const Task& task, Rows most)
        : task_(task),
          weights_(task.weights),
          update_(task.weights),
          encoder_(bind(task, weights_, update_)),
          inputs_((most.events + most.queries) * task.dimension),
          sums_(most.queries * task.scales * task.dimension),
          tokens_((most.events + most.queries) * task.width),
          states_(most.queries * task.width),
          norm_(most.queries, task.width),
          hidden_(most.queries * task.width),
          slope_(most.queries * task.width),
          profiles_(most.queries * task.dimension),
          logits_(most.queries * task.negatives),
          rest_(most.queries),
          pull_(most.queries),
          push_(most.targets),
          bias_(task.negatives),
          wide_(std::max(most.events * 3, most.queries) * task.width),
          narrow_(std::max(most.events, most.queries) * std::max(task.width, task.dimension)),
          scores_(most.events * Attention::stride(most.events)),
          panel_(COLUMNS * std::max({3 * task.width, task.dimension, task.negatives,
                                     most.events + most.queries})) {
        for (Index l = 0; l < task.layers; ++l)
            blocks_.emplace_back(most.events, task.width, task.heads);
    }

    // Leaves the device's update in `update` [weights].
    void train(Index device, float* update) {
        open(device);
        clear(update_, task_.weights);
        for (Index step = 0; step < task_.steps; ++step) {
            for (Index i = 0; i < task_.weights; ++i) weights_[i] = task_.shared[i] - update_[i];
            forward();
            lose(device, step);
            backward();
        }
        copy(update, update_, task_.weights);
    }

  private:
    // What stays the same over the steps: the window's vectors, and sums of length 1.
    void open(Index device) {
        const auto range = [&](const Index* offsets, Index& first, Index& count) {
            first = offsets[device];
            count = offsets[device + 1] - first;
        };
        range(task_.window_offsets, event_, events_);
        range(task_.query_offsets, query_, queries_);
        range(task_.target_offsets, target_, targets_);
        const Index k = task_.dimension;
        for (Index t = 0; t < events_; ++t)
            copy(inputs_ + t * k, vector(task_.window_items[event_ + t]), k);
        const float* sums = task_.query_sums + query_ * task_.scales * k;
        for (Index row = 0; row < queries_ * task_.scales; ++row, sums += k) {
            const float length = std::sqrt(dot(sums, sums, k));
            const float factor = 1.0f / (length < 1e-6f ? 1e-6f : length);
            for (Index j = 0; j < k; ++j) sums_[row * k + j] = sums[j] * factor;
        }
    }

    const float* vector(Index item) const { return task_.vectors + item * task_.dimension; }
    const float* gain(Index scale) const {
        return encoder_.gains.value + scale * (1 + task_.blocks);
    }
    Index position(Index query) const { return task_.query_positions[query_ + query]; }

    void forward() {
        const Index k = task_.dimension, width = task_.width;
        mix();
        // The adapter reads the window, and below it what the queries' sums are mixed to.
        clear(tokens_, (events_ + queries_) * width);
        add_linear(events_ + queries_, k, width, inputs_, encoder_.adapter, panel_, tokens_);
        for (Index t = 0; t < events_; ++t) {
            const float gap = task_.window_gaps[event_ + t];
            const float* kind = encoder_.kind.value + task_.window_types[event_ + t] * width;
            for (Index j = 0; j < width; ++j)
                tokens_[t * width + j] +=
                    gap * encoder_.gap.weight.value[j] + encoder_.gap.bias.value[j] + kind[j];
        }
        for (Index l = 0; l < task_.layers; ++l) forward(encoder_.layers[l], blocks_[l]);
        float* asked = tokens_ + events_ * width;
        for (Index q = 0; q < queries_; ++q) {
            if (position(q))
                copy(states_ + q * width, tokens_ + (position(q) - 1) * width, width);
            else  // the state before any event
                clear(states_ + q * width, width);
        }
        add_linear(queries_, width, width, states_, encoder_.read, panel_, asked);
        layer_norm(queries_, width, task_.epsilon, asked, encoder_.norm, norm_.kept(), norm_.out);
        gelu(queries_ * width, norm_.out, hidden_, slope_);
        add_linear(queries_, width, k, hidden_, encoder_.out.weight, panel_, profiles_);
    }

    // Sums of all scales into one for the adapter, and into the profile itself.
    void mix() {
        const Index k = task_.dimension;
        for (Index q = 0; q < queries_; ++q) {
            float *mixed = inputs_ + (events_ + q) * k, *profile = profiles_ + q * k;
            clear(mixed, k);
            copy(profile, encoder_.out.bias.value, k);
            for (Index s = 0; s < task_.scales; ++s) {
                const float* sum = sums_ + (q * task_.scales + s) * k;
                for (Index j = 0; j < k; ++j) mixed[j] += gain(s)[0] * sum[j];
                for (Index b = 0; b < task_.blocks; ++b) {
                    const float strength = gain(s)[1 + b];
                    for (Index j = task_.bounds[2 * b]; j < task_.bounds[2 * b + 1]; ++j)
                        profile[j] += strength * sum[j];
                }
            }
        }
    }

    void forward(const Block& block, const BlockRows& kept) {
        const Index rows = events_, width = task_.width;
        layer_norm(rows, width, task_.epsilon, tokens_, block.attention_norm,
                   kept.attention_norm.kept(), kept.attention_norm.out);
        linear(rows, width, 3 * width, kept.attention_norm.out, block.qkv, panel_, kept.qkv);
        attend(attention(), kept.qkv, panel_, kept.shares, kept.mixed);
        linear(rows, width, width, kept.mixed, block.project, panel_, narrow_);
        add(tokens_, narrow_, rows * width);
        layer_norm(rows, width, task_.epsilon, tokens_, block.feed_norm, kept.feed_norm.kept(),
                   kept.feed_norm.out);
        linear(rows, width, 2 * width, kept.feed_norm.out, block.widen, panel_, wide_);
        gelu(rows * 2 * width, wide_, kept.fed, kept.slope);
        linear(rows, 2 * width, width, kept.fed, block.narrow, panel_, narrow_);
        add(tokens_, narrow_, rows * width);
    }

    Attention attention() const { return {events_, task_.width, task_.heads, task_.slopes}; }

    // Profiles → their gradient, times the learning rate, in the same place.
    void lose(Index device, Index step) {
        const Index k = task_.dimension, drawn = task_.negatives;
        copy(bias_, task_.negative_bias + step * drawn, drawn);
        for (Index i = task_.known_offsets[device]; i < task_.known_offsets[device + 1]; ++i) {
            const Index place = task_.known_places[i] - step * drawn;
            if (place >= 0 && place < drawn) bias_[place] = task_.known_logit;
        }
        multiply(queries_, drawn, k, {profiles_, k, 1},
                 {task_.negative_columns + step * k * drawn, drawn, 1}, panel_,
                 [&](Index row, Index column, const float* found, Index count) {
                     for (Index j = 0; j < count; ++j)
                         logits_[row * drawn + column + j] = found[j] + bias_[column + j];
                 });
        for (Index q = 0; q < queries_; ++q) {
            const Exponentials all = softmax(logits_ + q * drawn, drawn);
            rest_[q] = all.most + std::log(all.sum);
            pull_[q] = 0;
        }
        // −log(e^t / (e^t + e^r)) = log(1 + e^(r − t)), and its derivative by r is σ(r − t).
        const float weight = task_.rate / static_cast<float>(targets_);
        for (Index m = target_; m < target_ + targets_; ++m) {
            const Index q = task_.target_queries[m], item = task_.target_items[m];
            const float score = dot(profiles_ + q * k, vector(item), k) + task_.priors[item];
            push_[m - target_] = weight * sigmoid(rest_[q] - score);
            pull_[q] += push_[m - target_];
        }
        for (Index q = 0; q < queries_; ++q)
            for (Index j = 0; j < drawn; ++j) logits_[q * drawn + j] *= pull_[q];
        multiply(queries_, k, drawn, {logits_, drawn, 1},
                 {task_.negative_rows + step * drawn * k, k, 1}, panel_,
                 copy_to(profiles_, k));
        for (Index m = target_; m < target_ + targets_; ++m) {
            float* profile = profiles_ + task_.target_queries[m] * k;
            const float* target = vector(task_.target_items[m]);
            for (Index j = 0; j < k; ++j) profile[j] -= push_[m - target_] * target[j];
        }
    }

    // From the gradient of the profiles on.
    void backward() {
        const Index k = task_.dimension, width = task_.width;
        float* asked = tokens_ + events_ * width;
        linear_backward(queries_, width, k, hidden_, profiles_, encoder_.out, wide_);
        for (Index j = 0; j < queries_ * width; ++j) wide_[j] *= slope_[j];
        clear(tokens_, (events_ + queries_) * width);
        layer_norm_backward(queries_, width, wide_, encoder_.norm, norm_.kept(), asked);
        linear_input(queries_, width, width, asked, encoder_.read, panel_, narrow_);
        learn_weight(queries_, width, width, states_, asked, encoder_.read, panel_);
        for (Index q = 0; q < queries_; ++q)
            if (position(q)) add(tokens_ + (position(q) - 1) * width, narrow_ + q * width, width);
        for (Index l = task_.layers; l-- > 0;) backward(encoder_.layers[l], blocks_[l]);
        learn_tokens();
        linear_input(queries_, k, width, asked, encoder_.adapter, panel_, narrow_);
        learn_weight(events_ + queries_, k, width, inputs_, tokens_, encoder_.adapter, panel_);
        learn_gains(narrow_);
    }

    // What encodes gap and type of the events, from the gradient of their tokens.
    void learn_tokens() {
        const Index width = task_.width;
        learn_bias(events_, width, tokens_, encoder_.gap.bias);
        for (Index t = 0; t < events_; ++t) {
            const float* token = tokens_ + t * width;
            const float gap = task_.window_gaps[event_ + t];
            for (Index j = 0; j < width; ++j) encoder_.gap.weight.update[j] += gap * token[j];
            add(encoder_.kind.update + task_.window_types[event_ + t] * width, token, width);
        }
    }

    // From the gradients of what the scales are mixed to, and of the profiles.
    void learn_gains(const float* mixed) {
        const Index k = task_.dimension;
        for (Index q = 0; q < queries_; ++q, mixed += k) {
            float* gradient = encoder_.gains.update;
            for (Index s = 0; s < task_.scales; ++s) {
                const float* sum = sums_ + (q * task_.scales + s) * k;
                *gradient++ += dot(mixed, sum, k);
                for (Index b = 0; b < task_.blocks; ++b) {
                    const Index first = task_.bounds[2 * b], stop = task_.bounds[2 * b + 1];
                    *gradient++ += dot(profiles_ + q * k + first, sum + first, stop - first);
                }
            }
        }
    }

    // Gradient of the block's output → of its input, in tokens_.
    void backward(const Block& block, const BlockRows& kept) {
        const Index rows = events_, width = task_.width;
        linear_backward(rows, 2 * width, width, kept.fed, tokens_, block.narrow, wide_);
        for (Index j = 0; j < rows * 2 * width; ++j) wide_[j] *= kept.slope[j];
        linear_backward(rows, width, 2 * width, kept.feed_norm.out, wide_, block.widen, narrow_);
        layer_norm_backward(rows, width, narrow_, block.feed_norm, kept.feed_norm.kept(),
                            tokens_);
        linear_backward(rows, width, width, kept.mixed, tokens_, block.project, narrow_);
        attend_backward(attention(), kept.qkv, kept.shares, narrow_, panel_, scores_, wide_);
        linear_backward(rows, width, 3 * width, kept.attention_norm.out, wide_, block.qkv, narrow_);
        layer_norm_backward(rows, width, narrow_, block.attention_norm, kept.attention_norm.kept(),
                            tokens_);
    }

    void linear_backward(Index rows, Index in, Index out, const float* x, const float* dy,
                         Affine layer, float* dx) {
        linear_input(rows, in, out, dy, layer.weight, panel_, dx);
        learn_weight(rows, in, out, x, dy, layer.weight, panel_);
        learn_bias(rows, out, dy, layer.bias);
    }

    const Task& task_;
    Floats weights_, update_;
    const Encoder encoder_;
    Index event_ = 0, events_ = 0, query_ = 0, queries_ = 0, target_ = 0, targets_ = 0;
    Floats inputs_, sums_, tokens_, states_;
    NormedRows norm_;
    Floats hidden_, slope_, profiles_, logits_, rest_, pull_, push_, bias_;
    std::vector<BlockRows> blocks_;
    Floats wide_, narrow_, scores_, panel_;  // scratch
};

// Rows of a device; an index that leads out of its table must not be followed.
Rows checked(const Task& task, Index device) {
    const auto require = [](bool within) {
        if (!within) throw std::out_of_range("an index of the examples is out of range");
    };
    const auto count = [device](const Index* offsets) {
        return offsets[device + 1] - offsets[device];
    };
    const Rows rows = {count(task.window_offsets), count(task.query_offsets),
                       count(task.target_offsets)};
    for (Index t = task.window_offsets[device]; t < task.window_offsets[device + 1]; ++t) {
        require(0 <= task.window_items[t] && task.window_items[t] < task.items);
        require(0 <= task.window_types[t] && task.window_types[t] < task.kinds);
    }
    for (Index q = task.query_offsets[device]; q < task.query_offsets[device + 1]; ++q)
        require(0 <= task.query_positions[q] && task.query_positions[q] <= rows.events);
    for (Index m = task.target_offsets[device]; m < task.target_offsets[device + 1]; ++m) {
        require(0 <= task.target_items[m] && task.target_items[m] < task.items);
        require(0 <= task.target_queries[m] && task.target_queries[m] < rows.queries);
    }
    return rows;
}

}  // namespace native

// Trains `count` devices and leaves their updates in `updates` [count, weights].
// Returns nothing, or what was wrong: text of this thread's, until its next call.
extern "C" const char* native_train(const native::Task* task, const native::Index* devices,
                                    native::Index count, float* updates) {
    static thread_local std::string wrong;
    try {
        if (task->size != sizeof(native::Task)) throw std::invalid_argument("another layout");
        native::Rows most = {0, 0, 0};
        for (native::Index i = 0; i < count; ++i) {
            const native::Rows rows = native::checked(*task, devices[i]);
            most = {std::max(most.events, rows.events), std::max(most.queries, rows.queries),
                    std::max(most.targets, rows.targets)};
        }
        native::Worker worker(*task, most);
        for (native::Index i = 0; i < count; ++i)
            worker.train(devices[i], updates + i * task->weights);
    } catch (const std::exception& e) {
        wrong = e.what();
        return wrong.c_str();
    }
    return nullptr;
}
