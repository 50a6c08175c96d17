// NovoGrad, alone or under LARC, for all contiguous float32 layers of a list in one call.
//
// Layers are worked on in batches that fit the cores' second-level caches: all threads sum the squares of the batch's
// chunks, one thread decides the layers' second moments, and the same threads then update the chunks whose gradients
// they have just read. So a gradient comes from memory once, and a layer costs no call of its own. Where the length of
// the step matters (luc, LARC), the moments go first, their norms are taken on the way, and the weights follow while
// moments and weights are in the cache.

#include "layers.h"

#include <torch/library.h>

#include <tuple>

namespace {

constexpr int64_t kElementsPerThread = 1 << 17;         // gradients of 512 KB: about half of a second-level cache
constexpr int64_t kLimitedElementsPerThread = 1 << 16;  // gradients, moments and weights of 768 KB

FOR_EACH_CPU void update(
    float* __restrict weight, const float* __restrict grad, float* __restrict exp_avg, int64_t size,
    float beta1, float factor, float decay, float lr) {
  for (int64_t i = 0; i < size; ++i) {
    const float moment = beta1 * exp_avg[i] + factor * grad[i] + decayed(decay, weight[i]);
    exp_avg[i] = moment;
    weight[i] -= lr * moment;
  }
}

// The moment alone; returns the sums of squares of weights and of new moments.
FOR_EACH_CPU std::pair<double, double> update_moment(
    const float* __restrict weight, const float* __restrict grad, float* __restrict exp_avg, int64_t size,
    float beta1, float factor, float decay) {
  return sums_of_squares(size, [=](int64_t i) __attribute__((always_inline)) {
    const float moment = beta1 * exp_avg[i] + factor * grad[i] + decayed(decay, weight[i]);
    exp_avg[i] = moment;
    return std::pair{weight[i], moment};
  });
}

struct Luc {
  double trust, eps;

  double step_size(double weight_norm, double moment_norm, double lr) const {
    const double length = moment_norm + eps;
    return std::min(length == 0 ? 0 : trust * weight_norm / length, lr);
  }
};

// Updates the layers it can and returns the indices of the others, and LARC's factors for all.
std::tuple<std::vector<int64_t>, std::vector<double>> novograd_step(
    at::TensorList params, at::TensorList grads, at::TensorList exp_avgs, at::TensorList exp_avg_sqs,
    at::TensorList max_exp_avg_sqs, at::TensorList grad_sq_norms, double beta1, double beta2, double lr,
    double decay, double eps, double averaging, double grad_scale, const std::optional<Luc>& luc,
    const std::optional<Larc>& larc) {
  const bool amsgrad = !max_exp_avg_sqs.empty();
  const bool limited = luc || larc;
  std::vector<int64_t> layers, others;
  Memory memory;
  for (int64_t i = 0; i < static_cast<int64_t>(params.size()); ++i) {
    const bool taken = fits(params[i], grads[i], exp_avgs[i]) && is_plain_number(exp_avg_sqs[i]) &&
        (!amsgrad || is_plain_number(max_exp_avg_sqs[i])) && memory.add(params[i]);
    (taken ? layers : others).push_back(i);
  }

  std::vector<double> sq_norms(params.size()), weight_sq_norms(params.size()), moment_sq_norms(params.size());
  std::vector<double> step_sizes(params.size(), lr), larc_factors(params.size(), 1.0);
  std::vector<float> factors(params.size());
  std::vector<double> sums, weight_sums, moment_sums;

  const int64_t per_thread = limited ? kLimitedElementsPerThread : kElementsPerThread;
  for_each_batch(layers, params, per_thread * at::get_num_threads(), [&](size_t begin, size_t end, const auto& chunks) {
    if (grad_sq_norms.empty()) {
      sums.resize(chunks.size());
      for_each_chunk(chunks, [&](const Chunk& chunk, int64_t c) {
        sums[c] = sum_of_squares(grads[chunk.layer].const_data_ptr<float>() + chunk.begin, chunk.size);
      });
      add_up(chunks, sums, sq_norms);
    }
    for (size_t position = begin; position < end; ++position) {
      const int64_t layer = layers[position];
      const double sq_norm =
          (grad_sq_norms.empty() ? sq_norms[layer] : grad_sq_norms[layer].item<double>()) / (grad_scale * grad_scale);
      float& stored = *exp_avg_sqs[layer].mutable_data_ptr<float>();
      double second_moment = stored == 0 ? sq_norm : beta2 * stored + (1 - beta2) * sq_norm;
      stored = static_cast<float>(second_moment);
      if (amsgrad) {
        float& maximum = *max_exp_avg_sqs[layer].mutable_data_ptr<float>();
        if (!(maximum > second_moment) && !std::isnan(maximum)) {
          maximum = static_cast<float>(second_moment);
        }
        second_moment = maximum;
      }
      const double denom = std::sqrt(second_moment) + eps;
      factors[layer] = denom == 0 ? 0.0F : static_cast<float>(averaging / (denom * grad_scale));
    }
    if (!limited) {
      for_each_chunk(chunks, [&](const Chunk& chunk, int64_t) {
        update(
            params[chunk.layer].mutable_data_ptr<float>() + chunk.begin,
            grads[chunk.layer].const_data_ptr<float>() + chunk.begin,
            exp_avgs[chunk.layer].mutable_data_ptr<float>() + chunk.begin, chunk.size, static_cast<float>(beta1),
            factors[chunk.layer], static_cast<float>(decay), static_cast<float>(lr));
      });
      return;
    }
    weight_sums.resize(chunks.size());
    moment_sums.resize(chunks.size());
    for_each_chunk(chunks, [&](const Chunk& chunk, int64_t c) {
      std::tie(weight_sums[c], moment_sums[c]) = update_moment(
          params[chunk.layer].const_data_ptr<float>() + chunk.begin,
          grads[chunk.layer].const_data_ptr<float>() + chunk.begin,
          exp_avgs[chunk.layer].mutable_data_ptr<float>() + chunk.begin, chunk.size, static_cast<float>(beta1),
          factors[chunk.layer], static_cast<float>(decay));
    });
    add_up(chunks, weight_sums, weight_sq_norms);
    add_up(chunks, moment_sums, moment_sq_norms);
    for (size_t position = begin; position < end; ++position) {
      const int64_t layer = layers[position];
      const double weight_norm = std::sqrt(weight_sq_norms[layer]), moment_norm = std::sqrt(moment_sq_norms[layer]);
      double& step_size = step_sizes[layer];
      if (luc) {
        step_size = luc->step_size(weight_norm, moment_norm, lr);
      }
      if (larc) {
        larc_factors[layer] = larc->update_factor(weight_norm, step_size * moment_norm, lr);
        step_size *= larc_factors[layer];
      }
    }
    for_each_chunk(chunks, [&](const Chunk& chunk, int64_t) {
      descend(
          params[chunk.layer].mutable_data_ptr<float>() + chunk.begin,
          exp_avgs[chunk.layer].const_data_ptr<float>() + chunk.begin, chunk.size,
          static_cast<float>(step_sizes[chunk.layer]));
    });
  });

  for (int64_t layer : layers) {
    bump_version(params[layer]);
    bump_version(exp_avgs[layer]);
    bump_version(exp_avg_sqs[layer]);
    if (amsgrad) {
      bump_version(max_exp_avg_sqs[layer]);
    }
  }
  return {others, larc_factors};
}

}  // namespace

TORCH_LIBRARY(lightning_novograd, library) {
  library.def(
      "novograd_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] max_exp_avg_sqs, Tensor[] grad_sq_norms, float beta1, float beta2, float lr, float decay, "
      "float eps, float averaging, float grad_scale, float[] luc, float[] larc) -> (int[], float[])",
      [](at::TensorList params, at::TensorList grads, at::TensorList exp_avgs, at::TensorList exp_avg_sqs,
         at::TensorList max_exp_avg_sqs, at::TensorList grad_sq_norms, double beta1, double beta2, double lr,
         double decay, double eps, double averaging, double grad_scale, at::ArrayRef<double> luc,
         at::ArrayRef<double> larc) {
        return novograd_step(
            params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, grad_sq_norms, beta1, beta2, lr, decay, eps,
            averaging, grad_scale, luc.empty() ? std::nullopt : std::make_optional(Luc{luc.at(0), luc.at(1)}),
            larc.empty() ? std::nullopt : std::make_optional(larc_from(larc)));
      });
}
