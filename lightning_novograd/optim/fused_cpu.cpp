// NovoGrad for all contiguous float32 layers of a list in one call: lightning_novograd::novograd_step_.
//
// Layers are worked on in batches whose gradients fit the cores' second-level caches: all threads sum the squares of the
// batch's chunks, one thread decides the layers' second moments, and the same threads then update the chunks whose
// gradients they have just read. So a gradient comes from memory once, and a layer costs no call of its own.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// The library may be run on another machine than it was built on: pick the instructions when it is loaded.
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif

namespace {

constexpr int64_t kChunk = 4096;                // elements; float32 sums of so few squares lose no digits
constexpr int64_t kPrefetch = 1024;             // elements ahead: one stream of reads alone does not fill the memory bus
constexpr int64_t kElementsPerThread = 1 << 17;  // gradients of 512 KB: about half of a second-level cache

struct Chunk {
  int64_t layer, begin, size;
};

FOR_EACH_CPU double sum_of_squares(const float* x, int64_t size) {
  constexpr int kLanes = 64;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int line = 0; line < kLanes; line += 16) {
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

FOR_EACH_CPU void update(
    float* __restrict weight, const float* __restrict grad, float* __restrict exp_avg, int64_t size,
    float beta1, float factor, float decay, float lr) {
  for (int64_t i = 0; i < size; ++i) {
    const float moment = beta1 * exp_avg[i] + factor * grad[i] + decay * weight[i];
    exp_avg[i] = moment;
    weight[i] -= lr * moment;
  }
}

bool is_plain_float(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat && tensor.layout() == at::kStrided && tensor.is_cpu() &&
      tensor.is_contiguous() && !tensor.is_neg();
}

// Updates the layers it can and returns the indices of the others.
std::vector<int64_t> novograd_step(
    at::TensorList params, at::TensorList grads, at::TensorList exp_avgs, at::TensorList exp_avg_sqs,
    at::TensorList max_exp_avg_sqs, at::TensorList grad_sq_norms, double beta1, double beta2, double lr,
    double decay, double eps, double averaging, double grad_scale) {
  const bool amsgrad = !max_exp_avg_sqs.empty();
  std::vector<int64_t> layers, others;
  for (int64_t i = 0; i < static_cast<int64_t>(params.size()); ++i) {
    const bool fits = is_plain_float(params[i]) && is_plain_float(grads[i]) && is_plain_float(exp_avgs[i]) &&
        is_plain_float(exp_avg_sqs[i]) && (!amsgrad || is_plain_float(max_exp_avg_sqs[i]));
    (fits ? layers : others).push_back(i);
  }

  const int64_t batch_size = kElementsPerThread * at::get_num_threads();
  std::vector<float> factors(params.size());
  std::vector<double> sums;
  std::vector<Chunk> chunks;
  for (auto first = layers.begin(), last = first; first != layers.end(); first = last) {
    chunks.clear();
    for (int64_t elements = 0; last != layers.end(); ++last) {
      const int64_t size = params[*last].numel();
      if (last != first && elements + size > batch_size) {
        break;
      }
      elements += size;
      for (int64_t begin = 0; begin < size; begin += kChunk) {
        chunks.push_back({*last, begin, std::min(kChunk, size - begin)});
      }
    }
    const int64_t num_chunks = chunks.size();

    if (grad_sq_norms.empty()) {
      sums.resize(num_chunks);
      at::parallel_for(0, num_chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) {
          const Chunk& chunk = chunks[c];
          sums[c] = sum_of_squares(grads[chunk.layer].const_data_ptr<float>() + chunk.begin, chunk.size);
        }
      });
    }
    int64_t c = 0;
    for (auto layer = first; layer != last; ++layer) {
      double sq_norm = 0;
      if (grad_sq_norms.empty()) {
        for (; c < num_chunks && chunks[c].layer == *layer; ++c) {
          sq_norm += sums[c];
        }
      } else {
        sq_norm = grad_sq_norms[*layer].item<double>();
      }
      sq_norm /= grad_scale * grad_scale;
      float& stored = *exp_avg_sqs[*layer].mutable_data_ptr<float>();
      double second_moment = stored == 0 ? sq_norm : beta2 * stored + (1 - beta2) * sq_norm;
      stored = static_cast<float>(second_moment);
      if (amsgrad) {
        float& maximum = *max_exp_avg_sqs[*layer].mutable_data_ptr<float>();
        if (!(maximum > second_moment) && !std::isnan(maximum)) {
          maximum = static_cast<float>(second_moment);
        }
        second_moment = maximum;
      }
      const double denom = std::sqrt(second_moment) + eps;
      factors[*layer] = denom == 0 ? 0.0F : static_cast<float>(averaging / (denom * grad_scale));
    }
    at::parallel_for(0, num_chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const Chunk& chunk = chunks[c];
        update(
            params[chunk.layer].mutable_data_ptr<float>() + chunk.begin,
            grads[chunk.layer].const_data_ptr<float>() + chunk.begin,
            exp_avgs[chunk.layer].mutable_data_ptr<float>() + chunk.begin, chunk.size, static_cast<float>(beta1),
            factors[chunk.layer], static_cast<float>(decay), static_cast<float>(lr));
      }
    });
  }

  for (int64_t layer : layers) {
    params[layer].unsafeGetTensorImpl()->bump_version();
    exp_avgs[layer].unsafeGetTensorImpl()->bump_version();
    exp_avg_sqs[layer].unsafeGetTensorImpl()->bump_version();
    if (amsgrad) {
      max_exp_avg_sqs[layer].unsafeGetTensorImpl()->bump_version();
    }
  }
  return others;
}

}  // namespace

TORCH_LIBRARY(lightning_novograd, library) {
  library.def(
      "novograd_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] max_exp_avg_sqs, Tensor[] grad_sq_norms, float beta1, float beta2, float lr, float decay, "
      "float eps, float averaging, float grad_scale) -> int[]",
      novograd_step);
}
