// Layers of the encoder, forward and backward, on the rows of one device.
//
// Matrices are row by row and dense. Gradients hold the learning rate already: what a backward pass finds
// for a parameter is added to its update, which is taken off the value before the next step.

#pragma once

#include <cmath>
#include <cstring>

#include "native_gemm.h"

namespace native {

// A parameter of one device. Weights of linear layers are held [in, out].
struct Parameter {
    const float* value;
    float* update;
};

struct Affine {
    Parameter weight, bias;
};

inline void clear(float* to, Index count) { std::fill_n(to, count, 0.0f); }

inline void copy(float* to, const float* from, Index count) {
    std::memcpy(to, from, count * sizeof(float));
}

inline void add(float* to, const float* from, Index count) {
    for (Index j = 0; j < count; ++j) to[j] += from[j];
}

// Leaves a product in a matrix whose rows are `stride` apart.
inline auto copy_to(float* to, Index stride) {
    return [=](Index row, Index column, const float* found, Index count) {
        copy(to + row * stride + column, found, count);
    };
}

inline Index whole_vectors(Index count) { return (count + LANES - 1) / LANES * LANES; }

inline float dot(const float* a, const float* b, Index count) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Index j = 0; j < count; ++j) sum += a[j] * b[j];
    return sum;
}

// e^x of x ≤ 0 to 1e-7, 0 where that underflows: 2^n · e^r, |r| ≤ ln(2) / 2, e^r by Cephes' polynomial.
inline float exp_of_negative(float x) {
    constexpr float LOWEST = -87.3f, ROUND = 0x1.8p23f;
    const float bounded = x < LOWEST ? LOWEST : x;  // NaN stays
    const float shifted = bounded * 1.44269504f + ROUND;
    const float n = shifted - ROUND;
    const float r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    std::uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;  // the lowest bits of `shifted` are n
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return x < LOWEST ? 0.0f : p * power;
}

inline float sigmoid(float x) {
    const float e = exp_of_negative(-std::fabs(x));
    return (x < 0 ? e : 1.0f) / (1.0f + e);
}

// x·Φ(x) and its derivative Φ(x) + x·φ(x).
// Φ by Abramowitz & Stegun 7.1.26, whose error is below 1e-7, from the exponential that φ needs too.
inline void gelu(Index count, const float* x, float* value, float* slope) {
    for (Index j = 0; j < count; ++j) {
        const float bell = exp_of_negative(-0.5f * x[j] * x[j]);
        const float t = 1.0f / (1.0f + 0.3275911f * 0.70710678f * std::fabs(x[j]));
        float p = 1.061405429f;
        p = p * t - 1.453152027f;
        p = p * t + 1.421413741f;
        p = p * t - 0.284496736f;
        p = p * t + 0.254829592f;
        const float tail = 0.5f * p * t * bell;
        const float below = x[j] < 0 ? tail : 1.0f - tail;
        value[j] = x[j] * below;
        slope[j] = below + x[j] * bell * 0.39894228f;
    }
}

// Σ e^x is sum · e^most.
struct Exponentials {
    float most, sum;
};

// Numbers → softmax, in place.
inline Exponentials softmax(float* x, Index count) {
    float most = x[0], sum = 0;
#pragma omp simd reduction(max : most)
    for (Index j = 1; j < count; ++j) most = x[j] > most ? x[j] : most;
#pragma omp simd reduction(+ : sum)
    for (Index j = 0; j < count; ++j) {
        x[j] = exp_of_negative(x[j] - most);
        sum += x[j];
    }
    const float factor = 1.0f / sum;
    for (Index j = 0; j < count; ++j) x[j] *= factor;
    return {most, sum};
}

// y[rows, out] = x[rows, in] · W + b.
inline void linear(Index rows, Index in, Index out, const float* x, Affine layer, float* panel,
                   float* y) {
    multiply(rows, out, in, {x, in, 1}, {layer.weight.value, out, 1}, panel,
             [=](Index row, Index column, const float* found, Index count) {
                 for (Index j = 0; j < count; ++j)
                     y[row * out + column + j] = found[j] + layer.bias.value[column + j];
             });
}

// y[rows, out] += x[rows, in] · W, and + b where there is one.
inline void add_linear(Index rows, Index in, Index out, const float* x, Parameter weight, float* panel,
                       float* y) {
    multiply(rows, out, in, {x, in, 1}, {weight.value, out, 1}, panel,
             [=](Index row, Index column, const float* found, Index count) {
                 add(y + row * out + column, found, count);
             });
}

// Gradient of the input: dx[rows, in] = dy[rows, out] · Wᵀ.
inline void linear_input(Index rows, Index in, Index out, const float* dy, Parameter weight,
                         float* panel, float* dx) {
    multiply(rows, in, out, {dy, out, 1}, {weight.value, 1, out}, panel, copy_to(dx, in));
}

// The weight learns from xᵀ · dy.
inline void learn_weight(Index rows, Index in, Index out, const float* x, const float* dy,
                         Parameter weight, float* panel) {
    multiply(in, out, rows, {x, 1, in}, {dy, out, 1}, panel,
             [=](Index row, Index column, const float* found, Index count) {
                 add(weight.update + row * out + column, found, count);
             });
}

// The bias learns from the sum of the rows of dy.
inline void learn_bias(Index rows, Index out, const float* dy, Parameter bias) {
    for (Index row = 0; row < rows; ++row) add(bias.update, dy + row * out, out);
}

// What layer normalisation keeps for its backward pass.
struct Normed {
    float *unit, *inverse;  // (x - mean) / deviation, [rows, width]; 1 / deviation, [rows]
};

inline void layer_norm(Index rows, Index width, float epsilon, const float* x, Affine layer,
                       Normed kept, float* y) {
    for (Index row = 0; row < rows; ++row, x += width, y += width) {
        float *unit = kept.unit + row * width, sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (Index j = 0; j < width; ++j) sum += x[j];
        const float mean = sum / width;
#pragma omp simd reduction(+ : squares)
        for (Index j = 0; j < width; ++j) {
            unit[j] = x[j] - mean;
            squares += unit[j] * unit[j];
        }
        const float inverse = 1.0f / std::sqrt(squares / width + epsilon);
        kept.inverse[row] = inverse;
        for (Index j = 0; j < width; ++j) {
            unit[j] *= inverse;
            y[j] = unit[j] * layer.weight.value[j] + layer.bias.value[j];
        }
    }
}

// dx += gradient of the input; the layer learns.
inline void layer_norm_backward(Index rows, Index width, const float* dy, Affine layer, Normed kept,
                                float* dx) {
    float *gain = layer.weight.update, *shift = layer.bias.update;
    for (Index row = 0; row < rows; ++row, dy += width, dx += width) {
        const float *unit = kept.unit + row * width, *weight = layer.weight.value;
        float sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
        for (Index j = 0; j < width; ++j) {
            gain[j] += dy[j] * unit[j];
            shift[j] += dy[j];
            sum += dy[j] * weight[j];
            along += dy[j] * weight[j] * unit[j];
        }
        const float inverse = kept.inverse[row], mean = sum / width, slope = along / width;
        for (Index j = 0; j < width; ++j)
            dx[j] += inverse * (dy[j] * weight[j] - mean - unit[j] * slope);
    }
}

// The shape of attention over what came before: ALiBi takes slope · (i - j) off score [i, j].
struct Attention {
    Index rows, width, heads;
    const float* slopes;

    Index size() const { return width / heads; }
    float scale() const { return 1.0f / std::sqrt(static_cast<float>(size())); }
    View query(const float* qkv, Index head) const { return {qkv + head * size(), 3 * width, 1}; }
    View key(const float* qkv, Index head) const { return query(qkv + width, head); }
    View value(const float* qkv, Index head) const { return query(qkv + 2 * width, head); }
    // Rows of scores are whole vectors, all of one length: that leaves no rest to any loop.
    static Index stride(Index rows) { return whole_vectors(rows); }
};

// qkv [rows, 3 · width] → shares [heads, rows, stride], zero above the diagonal; mixed [rows, width].
inline void attend(Attention shape, const float* qkv, float* panel, float* shares, float* mixed) {
    const Index rows = shape.rows, size = shape.size(), width = shape.width;
    const Index stride = shape.stride(rows);
    const float scale = shape.scale();
    for (Index head = 0; head < shape.heads; ++head, shares += rows * stride, mixed += size) {
        multiply(rows, rows, size, shape.query(qkv, head), shape.key(qkv, head).transposed(), panel,
                 copy_to(shares, stride), Part::lower_result);
        const float slope = shape.slopes[head];
        for (Index i = 0; i < rows; ++i) {
            float* row = shares + i * stride;
            const int last = static_cast<int>(i), whole = static_cast<int>(stride);
            for (int j = 0; j < whole; ++j)
                row[j] = j > last ? -INFINITY : row[j] * scale - slope * static_cast<float>(last - j);
            softmax(row, stride);
        }
        multiply(rows, size, rows, {shares, stride, 1}, shape.value(qkv, head), panel,
                 copy_to(mixed, width), Part::lower_a);
    }
}

// dmixed [rows, width] → dqkv [rows, 3 · width]; scores: scratch [rows, stride].
inline void attend_backward(Attention shape, const float* qkv, const float* shares,
                            const float* dmixed, float* panel, float* scores, float* dqkv) {
    const Index rows = shape.rows, size = shape.size(), width = shape.width;
    const Index stride = shape.stride(rows);
    const float scale = shape.scale();
    for (Index head = 0; head < shape.heads; ++head, shares += rows * stride, dqkv += size) {
        const View dout = {dmixed + head * size, width, 1};
        multiply(rows, rows, size, dout, shape.value(qkv, head).transposed(), panel,
                 copy_to(scores, stride), Part::lower_result);
        for (Index i = 0; i < rows; ++i) {
            float* row = scores + i * stride;
            const float* share = shares + i * stride;
            const int last = static_cast<int>(i), whole = static_cast<int>(stride);
            float mean = 0;
#pragma omp simd reduction(+ : mean)
            for (int j = 0; j < whole; ++j) {
                row[j] = j > last ? 0.0f : row[j] * share[j];
                mean += row[j];
            }
            for (Index j = 0; j < stride; ++j) row[j] = scale * (row[j] - mean * share[j]);
        }
        const View lower = {scores, stride, 1}, upper = lower.transposed();
        multiply(rows, size, rows, lower, shape.key(qkv, head), panel, copy_to(dqkv, 3 * width),
                 Part::lower_a);
        multiply(rows, size, rows, upper, shape.query(qkv, head), panel,
                 copy_to(dqkv + width, 3 * width), Part::upper_a);
        multiply(rows, size, rows, View{shares, stride, 1}.transposed(), dout, panel,
                 copy_to(dqkv + 2 * width, 3 * width), Part::upper_a);
    }
}

}  // namespace native
