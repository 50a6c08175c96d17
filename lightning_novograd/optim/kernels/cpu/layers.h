// What the steps share: how layers are cut into chunks and batches, sums over chunks, and LARC's factor.

#pragma once

#include <algorithm>
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

// Calls work(begin, end, chunks) for runs [begin, end) of layers of at most `elements` elements, or for one layer that
// has more. A layer has a member `size`.
template <typename Layer, typename Work>
void for_each_batch(const std::vector<Layer>& layers, int64_t elements, const Work& work) {
  std::vector<Chunk> chunks;
  const int64_t count = static_cast<int64_t>(layers.size());
  for (int64_t begin = 0, end = 0; begin < count; begin = end) {
    chunks.clear();
    for (int64_t taken = 0, room = 0; end < count; ++end) {
      const int64_t size = layers[end].size;
      if (end != begin && taken + size > elements) {
        break;
      }
      taken += size;
      for (int64_t start = 0; start < size; start += kChunk) {
        chunks.push_back({end, start, std::min(kChunk, size - start), room});
        room += in_lines(chunks.back().size);
      }
    }
    work(begin, end, chunks);
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

// Options of LARC; what they mean stands in larc/factors.py.
struct Larc {
  double trust_coefficient;
  bool clip;
  double eps;
  double min_update;

  double gradient_factor(double weight_norm, double grad_norm, double lr, double weight_decay) const {
    const double length = grad_norm + weight_decay * weight_norm + eps;
    return limited(trust_coefficient * weight_norm / (clip ? lr * length : length), weight_norm, grad_norm);
  }

  double update_factor(double weight_norm, double step_norm, double lr) const {
    const double bound = trust_coefficient * (clip ? weight_norm : lr * weight_norm);
    return limited(bound / (step_norm + lr * eps), weight_norm, step_norm);
  }

  double limited(double factor, double weight_norm, double norm) const {
    if (norm == 0) {
      return 1;
    }
    if (weight_norm == 0) {
      factor = min_update > 0 ? min_update : 1;
    }
    factor = std::max(factor, min_update);  // of a NaN, both keep it
    return clip ? std::min(factor, 1.0) : factor;
  }
};
