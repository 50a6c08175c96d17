// What the steps share: how layers are cut into chunks and batches, sums over chunks, and LARC's factor.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "loops.h"
#include "threads.h"

constexpr int64_t kChunk = 4096;  // elements; float32 sums of so few squares lose no digits

// Elements [begin, begin + size) of a layer; room is where in a batch's temporary memory they have place.
struct Chunk {
  int64_t layer, begin, size, room;
};

// Elements, rounded up to whole cache lines.
inline int64_t in_lines(int64_t elements) {
  return (elements + kLine - 1) / kLine * kLine;
}

// Layers that are worked on together, [begin, end) of all, and their chunks.
struct Batch {
  int64_t begin = 0, end = 0;
  std::vector<Chunk> chunks;

  int64_t size() const {
    return static_cast<int64_t>(chunks.size());
  }
};

// Makes `batch` the run of layers behind `batch`: of at most `elements` elements, or one layer that has more. Returns
// whether there were any. A layer has a member `size`.
template <typename Layer>
bool advance(Batch& batch, int64_t after, const std::vector<Layer>& layers, int64_t elements) {
  const int64_t count = static_cast<int64_t>(layers.size());
  batch.begin = batch.end = after;
  batch.chunks.clear();
  for (int64_t taken = 0, room = 0; batch.end < count; ++batch.end) {
    const int64_t size = layers[batch.end].size;
    if (batch.end != batch.begin && taken + size > elements) {
      break;
    }
    taken += size;
    for (int64_t start = 0; start < size; start += kChunk) {
      batch.chunks.push_back({batch.end, start, std::min(kChunk, size - start), room});
      room += in_lines(batch.chunks.back().size);
    }
  }
  return batch.end > batch.begin;
}

// Calls work(begin, end, chunks) for all batches.
template <typename Layer, typename Work>
void for_each_batch(const std::vector<Layer>& layers, int64_t elements, const Work& work) {
  for (Batch batch; advance(batch, batch.end, layers, elements);) {
    work(batch.begin, batch.end, batch.chunks);
  }
}

// Calls work(chunk, its index) for all chunks, on all threads.
template <typename Work>
void for_each_chunk(const Threads& threads, const std::vector<Chunk>& chunks, const Work& work) {
  threads.for_each(static_cast<int64_t>(chunks.size()), [&](int64_t c) { work(chunks[c], c); });
}

// Adds up the chunks' `sums` by layer.
inline void add_up(const std::vector<Chunk>& chunks, const std::vector<double>& sums, std::vector<double>& totals) {
  for (size_t c = 0; c < chunks.size(); ++c) {
    totals[chunks[c].layer] += sums[c];
  }
}

inline void add_up(
    const std::vector<Chunk>& chunks, const std::vector<Sums>& sums, std::vector<double>& firsts,
    std::vector<double>& seconds) {
  for (size_t c = 0; c < chunks.size(); ++c) {
    firsts[chunks[c].layer] += sums[c].first;
    seconds[chunks[c].layer] += sums[c].second;
  }
}

// A layer's norm from the sum of its squares, which is rounded to float32 as the sums of all other workers are.
inline double norm_of(double sum_of_squares) {
  return std::sqrt(static_cast<double>(static_cast<float>(sum_of_squares)));
}

// Options of LARC; what they mean stands in larc/factors.py.
struct Larc {
  double trust_coefficient;
  bool clip;
  double eps;
  double min_update;

  double gradient_factor(double weight_norm, double grad_norm, double lr, double weight_decay) const {
    const double length = grad_norm + weight_decay * weight_norm + eps;
    return limited(ratio(trust_coefficient * weight_norm, clip ? lr * length : length), weight_norm, grad_norm);
  }

  double update_factor(double weight_norm, double step_norm, double lr) const {
    const double bound = trust_coefficient * (clip ? weight_norm : lr * weight_norm);
    return limited(ratio(bound, step_norm + lr * eps), weight_norm, step_norm);
  }

  // A bound of 0 allows no step, also where there is no length (a learning rate of 0).
  static double ratio(double bound, double length) {
    return bound == 0 && length == 0 ? 0 : bound / length;
  }

  double limited(double factor, double weight_norm, double norm) const {
    if (norm == 0 || std::isinf(weight_norm)) {  // weights of infinite norm bound no step
      return 1;
    }
    if (weight_norm == 0) {
      factor = min_update > 0 ? min_update : 1;
    }
    factor = std::max(factor, min_update);  // of a NaN, both keep it
    return clip ? std::min(factor, 1.0) : factor;
  }
};
