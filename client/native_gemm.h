// Products of small matrices that stay in the cache.
//
// One micro-kernel keeps a tile of the result in registers: a row of B meets one number of A at a time.
// B is copied into panels as wide as the tile first, padded with zeros, so that the micro-kernel knows
// no strides, no rest of columns and no transposition of B.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

namespace native {

using Index = std::int64_t;

// A tile of ROWS × two vectors of sums leaves registers for the row of B and a number of A.
#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 12;
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 6;
#elif defined(__aarch64__)
constexpr int LANES = 4, ROWS = 12;
#else
constexpr int LANES = 4, ROWS = 6;
#endif
constexpr int COLUMNS = 2 * LANES;

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

// A matrix, or its transpose, anywhere in memory. One of both strides is 1.
struct View {
    const float* at;
    Index row, column;

    View transposed() const { return {at, column, row}; }
};

// What of a product is needed, or not zero, in attention over what came before only.
enum class Part {
    all,
    lower_result,  // of the result, rows from their diagonal on
    lower_a,       // A[i, j] = 0 for j > i
    upper_a,       // A[i, j] = 0 for j < i
};

namespace detail {

template <int rows, int vectors>
void multiply_tile(Index depth, View a, const Vector* panel, Vector* tile) {
    Vector sums[rows][vectors] = {};
    for (Index k = 0; k < depth; ++k) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) sums[i][v] += a.at[i * a.row] * panel[v];
        a.at += a.column;
        panel += vectors;
    }
    for (int i = 0; i < rows; ++i)
        for (int v = 0; v < vectors; ++v) tile[i * vectors + v] = sums[i][v];
}

using Tile = void (*)(Index, View, const Vector*, Vector*);

template <int vectors, int... rows>
constexpr std::array<Tile, ROWS> tiles(std::integer_sequence<int, rows...>) {
    return {multiply_tile<rows + 1, vectors>...};
}

constexpr std::array<Tile, ROWS> TILES[] = {
    tiles<1>(std::make_integer_sequence<int, ROWS>()),
    tiles<2>(std::make_integer_sequence<int, ROWS>()),
};

// A square of B, transposed. Zipping the first half of the rows with the second does it, when repeated:
// each time the index of a number, row before column, turns by one bit. Compilers know how to zip.
inline void pack_square(const float* from, Index stride, float* panel, Index width) {
    float rows[LANES * LANES], zipped[LANES * LANES];
    for (int i = 0; i < LANES; ++i)
        std::memcpy(rows + i * LANES, from + i * stride, LANES * sizeof(float));
    for (int n = 1; n < LANES; n *= 2) {
        constexpr int HALF = LANES * LANES / 2;
        for (int i = 0; i < HALF; ++i) {
            zipped[2 * i] = rows[i];
            zipped[2 * i + 1] = rows[i + HALF];
        }
        std::memcpy(rows, zipped, sizeof rows);
    }
    for (int i = 0; i < LANES; ++i)
        std::memcpy(panel + i * width, rows + i * LANES, LANES * sizeof(float));
}

// Columns first … first + columns of B, [depth, width] with zeros beyond them.
inline void pack(View b, Index depth, Index first, Index columns, Index width, float* panel) {
    b.at += first * b.column;
    if (b.column == 1) {
        for (Index k = 0; k < depth; ++k, b.at += b.row, panel += width) {
            if (columns == COLUMNS) {  // a number known to the compiler
                std::memcpy(panel, b.at, COLUMNS * sizeof(float));
            } else {
                std::copy_n(b.at, columns, panel);
                std::fill(panel + columns, panel + width, 0.0f);
            }
        }
        return;
    }
    for (Index j = 0; j < width; j += LANES)
        for (Index k = 0; k < depth; k += LANES) {
            if (j + LANES <= columns && k + LANES <= depth) {
                pack_square(b.at + j * b.column + k, b.column, panel + k * width + j, width);
                continue;
            }
            for (Index i = j; i < j + LANES; ++i)
                for (Index l = k; l < std::min(k + LANES, depth); ++l)
                    panel[l * width + i] = i < columns ? b.at[i * b.column + l] : 0.0f;
        }
}

}  // namespace detail

// A[m, depth] · B[depth, n], handed to store(row, column, numbers, count) a stretch of a row at a time.
// panel: scratch of depth · COLUMNS floats, aligned to a vector.
template <class Store>
void multiply(Index m, Index n, Index depth, View a, View b, float* panel, Store store,
              Part part = Part::all) {
    alignas(64) float tile[ROWS * COLUMNS];
    for (Index column = 0; column < n; column += COLUMNS) {
        const Index columns = std::min<Index>(COLUMNS, n - column);
        const Index vectors = columns > LANES ? 2 : 1, width = vectors * LANES;
        detail::pack(b, depth, column, columns, width, panel);
        Index row = part == Part::lower_result ? column : 0;
        // Blocks of rows as even as can be.
        for (Index blocks = (m - row + ROWS - 1) / ROWS, rows; blocks > 0; --blocks, row += rows) {
            rows = (m - row + blocks - 1) / blocks;
            const Index from = part == Part::upper_a ? row : 0;
            const Index to = part == Part::lower_a ? std::min(depth, row + rows) : depth;
            detail::TILES[vectors - 1][rows - 1](
                to - from, {a.at + row * a.row + from * a.column, a.row, a.column},
                reinterpret_cast<const Vector*>(panel + from * width),
                reinterpret_cast<Vector*>(tile));
            for (Index i = 0; i < rows; ++i) {
                if (columns == COLUMNS)  // a number known to the compiler
                    store(row + i, column, tile + i * COLUMNS, Index{COLUMNS});
                else
                    store(row + i, column, tile + i * width, columns);
            }
        }
    }
}

}  // namespace native
