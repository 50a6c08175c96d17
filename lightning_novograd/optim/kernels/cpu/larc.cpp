// LARC for contiguous float32 layers: around SGD, Adam and AdamW in one call, and around any other optimizer's step.
//
// As in novograd.cpp, layers are worked on in batches that fit the cores' second-level caches: norms first, then the
// step on what has just been read. Around SGD (target gradient) the norms are those of weights and gradients. Adam's step
// (target update) is written to memory of the batch's size, which stays in the cache, its norm is taken on the way, and
// it goes from there to the weights. For any other optimizer `larc_save_` copies the weights before its step, and
// `larc_limit_` shortens the way from there afterwards.

#include "layers.h"

#include <torch/library.h>

namespace {

// Elements that are worked on together: per thread, gradients, moments and weights of 768 KB, for a second-level cache.
int64_t batch_size() {
  return (1 << 16) * at::get_num_threads();
}

FOR_EACH_CPU void copy(float* __restrict to, const float* __restrict from, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    to[i] = from[i];
  }
}

// The sums of squares of `before` and of `after - before`.
FOR_EACH_CPU std::pair<double, double> norm_and_distance(
    const float* __restrict before, const float* __restrict after, int64_t size) {
  return sums_of_squares(size, [=](int64_t i) __attribute__((always_inline)) {
    return std::pair{before[i], after[i] - before[i]};
  });
}

FOR_EACH_CPU void interpolate(const float* __restrict before, float* __restrict after, int64_t size, float factor) {
  for (int64_t i = 0; i < size; ++i) {
    after[i] = before[i] + factor * (after[i] - before[i]);
  }
}

struct Sgd {
  float lr, weight_decay, momentum, sign;
  bool nesterov;
};

FOR_EACH_CPU void sgd(
    float* __restrict weight, const float* __restrict grad, float* __restrict moment, int64_t size, Sgd options,
    float factor, float share) {
  const auto step = [&](int64_t i) __attribute__((always_inline)) {
    const float scaled = factor * (options.sign * grad[i] + decayed(options.weight_decay, weight[i]));
    const float average = options.momentum * moment[i] + share * scaled;
    moment[i] = average;
    weight[i] -= options.lr * (options.nesterov ? scaled + options.momentum * average : average);
  };
  int64_t i = 0;
  for (; i + kLine <= size; i += kLine) {
    __builtin_prefetch(moment + i + kPrefetch, 1);
    for (int64_t lane = 0; lane < kLine; ++lane) {
      step(i + lane);
    }
  }
  for (; i < size; ++i) {
    step(i);
  }
}

FOR_EACH_CPU void sgd_without_momentum(
    float* __restrict weight, const float* __restrict grad, int64_t size, Sgd options, float factor) {
  for (int64_t i = 0; i < size; ++i) {
    weight[i] -= options.lr * factor * (options.sign * grad[i] + decayed(options.weight_decay, weight[i]));
  }
}

struct Adam {
  float beta1, one_less_beta1, beta2, one_less_beta2, eps, step_size, bias_correction;
  float decay_of_grad, decay_of_weight, sign;
};

// The moments, and the step in `update`; returns the sums of squares of weights and of the step.
FOR_EACH_CPU std::pair<double, double> adam(
    const float* __restrict weight, const float* __restrict grad, float* __restrict exp_avg,
    float* __restrict exp_avg_sq, float* __restrict update, int64_t size, Adam options) {
  return sums_of_squares(size, [=](int64_t i) __attribute__((always_inline)) {
    const float g = options.sign * grad[i] + decayed(options.decay_of_grad, weight[i]);
    const float moment = options.beta1 * exp_avg[i] + options.one_less_beta1 * g;
    const float second_moment = options.beta2 * exp_avg_sq[i] + options.one_less_beta2 * g * g;
    exp_avg[i] = moment;
    exp_avg_sq[i] = second_moment;
    const float denom = std::sqrt(second_moment) * options.bias_correction + options.eps;
    update[i] = options.step_size * moment / denom + decayed(options.decay_of_weight, weight[i]);
    return std::pair{weight[i], update[i]};
  });
}

float* with_room_for(const at::Tensor& scratch, int64_t elements) {
  if (scratch.numel() < elements) {
    scratch.resize_(elements);
  }
  return scratch.mutable_data_ptr<float>();
}

// Factors for all layers, and the indices of those that it leaves to others.
std::tuple<std::vector<double>, std::vector<int64_t>> larc_sgd_step(
    at::TensorList params, at::TensorList grads, at::TensorList moments, at::ArrayRef<double> shares, double lr,
    double weight_decay, double momentum, bool nesterov, bool maximize, at::ArrayRef<double> larc_options) {
  const Larc larc = larc_from(larc_options);
  const Sgd options{static_cast<float>(lr), static_cast<float>(weight_decay), static_cast<float>(momentum),
                    maximize ? -1.0F : 1.0F, nesterov};
  std::vector<int64_t> layers, others;
  Memory memory;
  for (int64_t i = 0; i < static_cast<int64_t>(params.size()); ++i) {
    const bool taken =
        fits(params[i], grads[i]) && (moments.empty() || fits(params[i], moments[i])) && memory.add(params[i]);
    (taken ? layers : others).push_back(i);
  }
  std::vector<double> weight_sq_norms(params.size()), grad_sq_norms(params.size()), factors(params.size());
  std::vector<double> weight_sums, grad_sums;
  for_each_batch(layers, params, batch_size(), [&](size_t begin, size_t end, const auto& chunks) {
    weight_sums.resize(chunks.size());
    grad_sums.resize(chunks.size());
    for_each_chunk(chunks, [&](const Chunk& chunk, int64_t c) {
      weight_sums[c] = sum_of_squares(params[chunk.layer].const_data_ptr<float>() + chunk.begin, chunk.size);
      grad_sums[c] = sum_of_squares(grads[chunk.layer].const_data_ptr<float>() + chunk.begin, chunk.size);
    });
    add_up(chunks, weight_sums, weight_sq_norms);
    add_up(chunks, grad_sums, grad_sq_norms);
    for (size_t position = begin; position < end; ++position) {
      const int64_t layer = layers[position];
      factors[layer] = larc.gradient_factor(
          std::sqrt(weight_sq_norms[layer]), std::sqrt(grad_sq_norms[layer]), lr, weight_decay);
    }
    for_each_chunk(chunks, [&](const Chunk& chunk, int64_t) {
      float* weight = params[chunk.layer].mutable_data_ptr<float>() + chunk.begin;
      const float* grad = grads[chunk.layer].const_data_ptr<float>() + chunk.begin;
      // A factor of 0 keeps a zero gradient free of decay, as in apex.
      const double factor = grad_sq_norms[chunk.layer] == 0 ? 0 : factors[chunk.layer];
      if (moments.empty()) {
        sgd_without_momentum(weight, grad, chunk.size, options, static_cast<float>(factor));
      } else {
        sgd(weight, grad, moments[chunk.layer].mutable_data_ptr<float>() + chunk.begin, chunk.size, options,
            static_cast<float>(factor), static_cast<float>(shares[chunk.layer]));
      }
    });
  });
  for (int64_t layer : layers) {
    bump_version(params[layer]);
    if (!moments.empty()) {
      bump_version(moments[layer]);
    }
  }
  return {factors, others};
}

// Factors for all layers, and the indices of those that it leaves to others.
std::tuple<std::vector<double>, std::vector<int64_t>> larc_adam_step(
    at::TensorList params, at::TensorList grads, at::TensorList exp_avgs, at::TensorList exp_avg_sqs,
    at::TensorList steps, double beta1, double beta2, double eps, double lr, double weight_decay, bool decoupled,
    bool maximize, at::ArrayRef<double> larc_options, const at::Tensor& scratch) {
  const Larc larc = larc_from(larc_options);
  std::vector<int64_t> layers, others;
  Memory memory;
  std::vector<Adam> options(params.size());
  for (int64_t i = 0; i < static_cast<int64_t>(params.size()); ++i) {
    if (!fits(params[i], grads[i], exp_avgs[i], exp_avg_sqs[i]) || !is_plain_number(steps[i]) ||
        !memory.add(params[i])) {
      others.push_back(i);
      continue;
    }
    layers.push_back(i);
    const double step = *steps[i].mutable_data_ptr<float>() += 1;
    options[i] = {
        static_cast<float>(beta1),
        static_cast<float>(1 - beta1),
        static_cast<float>(beta2),
        static_cast<float>(1 - beta2),
        static_cast<float>(eps),
        static_cast<float>(lr / (1 - std::pow(beta1, step))),
        static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, step))),
        static_cast<float>(decoupled ? 0 : weight_decay),
        static_cast<float>(decoupled ? lr * weight_decay : 0),
        maximize ? -1.0F : 1.0F};
  }
  std::vector<double> weight_sq_norms(params.size()), step_sq_norms(params.size()), factors(params.size());
  std::vector<double> weight_sums, step_sums;
  for_each_batch(layers, params, batch_size(), [&](size_t begin, size_t end, const auto& chunks) {
    weight_sums.resize(chunks.size());
    step_sums.resize(chunks.size());
    float* updates = with_room_for(scratch, chunks.empty() ? 0 : chunks.back().room + in_lines(chunks.back().size));
    for_each_chunk(chunks, [&](const Chunk& chunk, int64_t c) {
      std::tie(weight_sums[c], step_sums[c]) = adam(
          params[chunk.layer].const_data_ptr<float>() + chunk.begin,
          grads[chunk.layer].const_data_ptr<float>() + chunk.begin,
          exp_avgs[chunk.layer].mutable_data_ptr<float>() + chunk.begin,
          exp_avg_sqs[chunk.layer].mutable_data_ptr<float>() + chunk.begin, updates + chunk.room, chunk.size,
          options[chunk.layer]);
    });
    add_up(chunks, weight_sums, weight_sq_norms);
    add_up(chunks, step_sums, step_sq_norms);
    for (size_t position = begin; position < end; ++position) {
      const int64_t layer = layers[position];
      factors[layer] = larc.update_factor(std::sqrt(weight_sq_norms[layer]), std::sqrt(step_sq_norms[layer]), lr);
    }
    for_each_chunk(chunks, [&](const Chunk& chunk, int64_t) {
      descend(
          params[chunk.layer].mutable_data_ptr<float>() + chunk.begin, updates + chunk.room, chunk.size,
          static_cast<float>(factors[chunk.layer]));
    });
  });
  for (int64_t layer : layers) {
    bump_version(params[layer]);
    bump_version(exp_avgs[layer]);
    bump_version(exp_avg_sqs[layer]);
    bump_version(steps[layer]);
  }
  return {factors, others};
}

// Indices of layers that the kernels cannot take.
std::vector<int64_t> misfits(at::TensorList params, at::TensorList grads) {
  std::vector<int64_t> result;
  Memory memory;
  for (size_t i = 0; i < params.size(); ++i) {
    if (!fits(params[i], grads[i]) || !memory.add(params[i])) {
      result.push_back(i);
    }
  }
  return result;
}

std::vector<int64_t> positions(at::TensorList params) {
  std::vector<int64_t> layers(params.size());
  std::iota(layers.begin(), layers.end(), 0);
  return layers;
}

// Copies the layers one after the other into `before`, which grows as needed, and returns where each begins; nothing is
// copied and nothing returned where a layer does not fit.
std::vector<int64_t> larc_save(const at::Tensor& before, at::TensorList params) {
  Memory memory;
  for (const auto& param : params) {
    if (!is_plain_float(param) || !memory.add(param)) {
      return {};
    }
  }
  std::vector<int64_t> starts;
  int64_t elements = 0;
  for (const auto& param : params) {
    starts.push_back(elements);
    elements += in_lines(param.numel());
  }
  float* copies = with_room_for(before, elements);
  for_each_batch(positions(params), params, batch_size(), [&](size_t, size_t, const auto& chunks) {
    for_each_chunk(chunks, [&](const Chunk& chunk, int64_t) {
      copy(copies + starts[chunk.layer] + chunk.begin,
           params[chunk.layer].const_data_ptr<float>() + chunk.begin, chunk.size);
    });
  });
  return starts;
}

// Scales the way from the copies in `before` to `params`; returns the factors.
std::vector<double> larc_limit(
    const at::Tensor& before, at::ArrayRef<int64_t> starts, at::TensorList params, double lr,
    at::ArrayRef<double> larc_options) {
  const Larc larc = larc_from(larc_options);
  const float* copies = before.const_data_ptr<float>();
  for (size_t i = 0; i < params.size(); ++i) {
    TORCH_CHECK(
        is_plain_float(params[i]) && starts.at(i) + params[i].numel() <= before.numel(),
        "LARC: the wrapped optimizer has replaced a layer by a tensor of another size, layout or dtype");
  }
  std::vector<double> sq_norms(params.size()), sq_steps(params.size()), factors(params.size());
  std::vector<double> sums, step_sums;
  for_each_batch(positions(params), params, batch_size(), [&](size_t begin, size_t end, const auto& chunks) {
    sums.resize(chunks.size());
    step_sums.resize(chunks.size());
    for_each_chunk(chunks, [&](const Chunk& chunk, int64_t c) {
      std::tie(sums[c], step_sums[c]) = norm_and_distance(
          copies + starts[chunk.layer] + chunk.begin, params[chunk.layer].const_data_ptr<float>() + chunk.begin,
          chunk.size);
    });
    add_up(chunks, sums, sq_norms);
    add_up(chunks, step_sums, sq_steps);
    for (size_t layer = begin; layer < end; ++layer) {
      factors[layer] = larc.update_factor(std::sqrt(sq_norms[layer]), std::sqrt(sq_steps[layer]), lr);
    }
    for_each_chunk(chunks, [&](const Chunk& chunk, int64_t) {
      if (factors[chunk.layer] != 1) {
        interpolate(
            copies + starts[chunk.layer] + chunk.begin,
            params[chunk.layer].mutable_data_ptr<float>() + chunk.begin, chunk.size,
            static_cast<float>(factors[chunk.layer]));
      }
    });
  });
  std::for_each(params.begin(), params.end(), bump_version);
  return factors;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lightning_novograd, library) {
  library.def(
      "larc_sgd_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] moments, float[] shares, float lr, "
      "float weight_decay, float momentum, bool nesterov, bool maximize, float[] larc) -> (float[], int[])",
      larc_sgd_step);
  library.def(
      "larc_adam_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] steps, float beta1, float beta2, float eps, float lr, float weight_decay, bool decoupled, "
      "bool maximize, float[] larc, Tensor(e!) scratch) -> (float[], int[])",
      larc_adam_step);
  library.def("larc_save_(Tensor(a!) before, Tensor[] params) -> int[]", larc_save);
  library.def(
      "larc_limit_(Tensor before, int[] starts, Tensor(a!)[] params, float lr, float[] larc) -> float[]", larc_limit);
  library.def("misfits(Tensor[] params, Tensor[] grads) -> int[]", misfits);
}
