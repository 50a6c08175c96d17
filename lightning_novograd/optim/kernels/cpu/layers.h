// What the kernels share: which layers they take, how these are cut, sums over them, and LARC's factor.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// The library may be run on another machine than it was built on: pick the instructions when it is loaded.
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif

constexpr int64_t kChunk = 4096;     // elements; float32 sums of so few squares lose no digits
constexpr int64_t kLine = 16;        // of a cache line
constexpr int64_t kPrefetch = 1024;  // elements ahead: one stream of reads alone does not fill the memory bus

// Elements [begin, begin + size) of a layer; room is where in a batch's temporary memory they have place.
struct Chunk {
  int64_t layer, begin, size, room;
};

// Wrappers such as DTensor say that they are float tensors on the CPU, and have no memory of their own.
inline bool is_plain_float(const at::Tensor& tensor) {
  return !tensor.key_set().has(c10::DispatchKey::Python) && tensor.has_storage() &&
      tensor.scalar_type() == at::kFloat && tensor.layout() == at::kStrided && tensor.is_cpu() &&
      tensor.is_contiguous() && !tensor.is_neg();
}

// Whether the kernels can take a layer, given the tensors that have one element per weight.
template <typename... Tensors>
bool fits(const at::Tensor& param, const Tensors&... others) {
  return is_plain_float(param) && ((is_plain_float(others) && others.sizes() == param.sizes()) && ...);
}

// Memory that the threads write to. Layers that share some must be stepped one after the other.
class Memory {
 public:
  // Whether `tensor` has no byte in common with those that were added; then it is added.
  bool add(const at::Tensor& tensor) {
    if (tensor.numel() == 0) {
      return true;
    }
    const char* begin = static_cast<const char*>(tensor.const_data_ptr());
    const char* end = begin + tensor.nbytes();
    const auto next = ends_.upper_bound(begin);  // the first that ends behind `begin`
    if (next != ends_.end() && next->second < end) {
      return false;
    }
    ends_.emplace_hint(next, end, begin);
    return true;
  }

 private:
  std::map<const char*, const char*> ends_;
};

inline bool is_plain_number(const at::Tensor& tensor) {
  return is_plain_float(tensor) && tensor.numel() == 1;
}

inline void bump_version(const at::Tensor& tensor) {
  tensor.unsafeGetTensorImpl()->bump_version();
}

// Elements, rounded up to whole cache lines.
inline int64_t in_lines(int64_t elements) {
  return (elements + kLine - 1) / kLine * kLine;
}

// Calls work(begin, end, chunks) for runs of layers of at most `elements` elements, or for one layer that has more:
// [begin, end) are positions in `layers`, indices into `tensors`.
template <typename Work>
void for_each_batch(
    const std::vector<int64_t>& layers, at::TensorList tensors, int64_t elements, const Work& work) {
  std::vector<Chunk> chunks;
  const size_t count = layers.size();
  for (size_t begin = 0, end = 0; begin < count; begin = end) {
    chunks.clear();
    for (int64_t taken = 0, room = 0; end < count; ++end) {
      const int64_t size = tensors[layers[end]].numel();
      if (end != begin && taken + size > elements) {
        break;
      }
      taken += size;
      for (int64_t start = 0; start < size; start += kChunk) {
        chunks.push_back({layers[end], start, std::min(kChunk, size - start), room});
        room += in_lines(chunks.back().size);
      }
    }
    work(begin, end, chunks);
  }
}

template <typename Work>
void for_each_chunk(const std::vector<Chunk>& chunks, const Work& work) {
  at::parallel_for(0, static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      work(chunks[c], c);
    }
  });
}

// Adds up the chunks' `sums` by layer.
inline void add_up(const std::vector<Chunk>& chunks, const std::vector<double>& sums, std::vector<double>& totals) {
  for (size_t c = 0; c < chunks.size(); ++c) {
    totals[chunks[c].layer] += sums[c];
  }
}

FOR_EACH_CPU static double sum_of_squares(const float* x, int64_t size) {
  constexpr int kLanes = 64;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int64_t line = 0; line < kLanes; line += kLine) {
      __builtin_prefetch(x + i + kPrefetch + line);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      sums[lane] += x[i + lane] * x[i + lane];
    }
  }
  double total = 0;
  for (float sum : sums) {
    total += sum;
  }
  for (; i < size; ++i) {
    total += static_cast<double>(x[i]) * x[i];
  }
  return total;
}

// The two sums of squares of what element(i) returns for all i below `size`, float32 in lanes as above.
template <typename Element>
__attribute__((always_inline)) inline std::pair<double, double> sums_of_squares(int64_t size, const Element& element) {
  constexpr int kLanes = 32;
  float firsts[kLanes] = {}, seconds[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto [first, second] = element(i + lane);
      firsts[lane] += first * first;
      seconds[lane] += second * second;
    }
  }
  double first_sum = 0, second_sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    first_sum += firsts[lane];
    second_sum += seconds[lane];
  }
  for (; i < size; ++i) {
    const auto [first, second] = element(i);
    first_sum += static_cast<double>(first) * first;
    second_sum += static_cast<double>(second) * second;
  }
  return {first_sum, second_sum};
}

// Without decay there is none of an infinite weight either, where 0 times infinity would be NaN.
__attribute__((always_inline)) inline float decayed(float decay, float weight) {
  return decay == 0 ? 0.0F : decay * weight;
}

FOR_EACH_CPU static void descend(
    float* __restrict weight, const float* __restrict direction, int64_t size, float step_size) {
  for (int64_t i = 0; i < size; ++i) {
    weight[i] -= step_size * direction[i];
  }
}

// Options of LARC; what they mean stands in larc_maths.py.
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

// From {trust_coefficient, clip, eps, min_update}.
inline Larc larc_from(at::ArrayRef<double> options) {
  return {options.at(0), options.at(1) != 0, options.at(2), options.at(3)};
}
