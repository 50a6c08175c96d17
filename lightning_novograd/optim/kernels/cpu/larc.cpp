// As in novograd.cpp, layers are worked on in batches that fit the cores' second-level caches: norms first, then the
// step on what has just been read. Around SGD (target gradient) the norms are those of weights and gradients. Adam's step
// (target update) is written to memory of the batch's size, which stays in the cache, its norm is taken on the way, and
// it goes from there to the weights. For any other optimizer `larc_save` copies the weights before its step, and
// `larc_limit` shortens the way from there afterwards.

#include "larc.h"

#include <cmath>

namespace {

// Elements that are worked on together: per thread, gradients, moments and weights of 768 KB, for a second-level cache.
int64_t batch_size(const Threads& threads) {
  return (1 << 16) * threads.number;
}

int64_t room_of(const std::vector<Chunk>& chunks) {
  return chunks.empty() ? 0 : chunks.back().room + in_lines(chunks.back().size);
}

// 1 - beta^step, for small 1 - beta without loss of digits. (And std::pow of a new glibc is not that of older ones.)
double one_less_power(double beta, double step) {
  return -std::expm1(step * std::log1p(beta - 1));
}

Adam adam_of(const LarcAdam& options, double step) {
  return {
      static_cast<float>(options.beta1),
      static_cast<float>(1 - options.beta1),
      static_cast<float>(options.beta2),
      static_cast<float>(1 - options.beta2),
      static_cast<float>(options.eps),
      static_cast<float>(options.lr / one_less_power(options.beta1, step)),
      static_cast<float>(1 / std::sqrt(one_less_power(options.beta2, step))),
      static_cast<float>(options.decoupled ? 0 : options.weight_decay),
      static_cast<float>(options.decoupled ? options.lr * options.weight_decay : 0),
      options.maximize ? -1.0F : 1.0F};
}

// weight -= step, of which decay is a part: it leaves infinity as it is, and infinity less infinity would be NaN.
void descend_from_infinity(float* weight, const float* step, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    weight[i] = std::isinf(weight[i]) && step[i] == weight[i] ? weight[i] : weight[i] - step[i];
  }
}

}  // namespace

std::vector<double> larc_sgd_step(
    const std::vector<LarcSgdLayer>& layers, const LarcSgd& options, const Larc& larc, const Threads& threads) {
  const Loops& cpu = loops();
  const Sgd sgd{
      static_cast<float>(options.lr), static_cast<float>(options.weight_decay), static_cast<float>(options.momentum),
      options.maximize ? -1.0F : 1.0F, options.nesterov};
  std::vector<double> weight_sq_norms(layers.size()), grad_sq_norms(layers.size()), factors(layers.size());
  std::vector<Sums> sums;
  for_each_batch(layers, batch_size(threads), [&](int64_t begin, int64_t end, const auto& chunks) {
    sums.resize(chunks.size());
    for_each_chunk(threads, chunks, [&](const Chunk& chunk, int64_t c) {
      sums[c].first = cpu.sum_of_squares(layers[chunk.layer].weight + chunk.begin, chunk.size);
      sums[c].second = cpu.sum_of_squares(layers[chunk.layer].grad + chunk.begin, chunk.size);
    });
    add_up(chunks, sums, weight_sq_norms, grad_sq_norms);
    for (int64_t i = begin; i < end; ++i) {
      factors[i] = larc.gradient_factor(
          norm_of(weight_sq_norms[i]), norm_of(grad_sq_norms[i]), options.lr, options.weight_decay);
    }
    for_each_chunk(threads, chunks, [&](const Chunk& chunk, int64_t) {
      const LarcSgdLayer& layer = layers[chunk.layer];
      // A factor of 0 keeps a zero gradient free of decay, as in apex.
      const float factor = norm_of(grad_sq_norms[chunk.layer]) == 0 ? 0.0F : static_cast<float>(factors[chunk.layer]);
      if (layer.moment == nullptr) {
        cpu.sgd_without_momentum(layer.weight + chunk.begin, layer.grad + chunk.begin, chunk.size, sgd, factor);
      } else {
        cpu.sgd(
            layer.weight + chunk.begin, layer.grad + chunk.begin, layer.moment + chunk.begin, chunk.size, sgd, factor,
            layer.share);
      }
    });
  });
  return factors;
}

int64_t larc_adam_room(const std::vector<LarcAdamLayer>& layers, const Threads& threads) {
  int64_t room = 0;
  for_each_batch(layers, batch_size(threads), [&](int64_t, int64_t, const auto& chunks) {
    room = std::max(room, room_of(chunks));
  });
  return room;
}

std::vector<double> larc_adam_step(
    const std::vector<LarcAdamLayer>& layers, const LarcAdam& options, const Larc& larc, float* room,
    const Threads& threads) {
  const Loops& cpu = loops();
  std::vector<Adam> adams;
  adams.reserve(layers.size());
  for (const LarcAdamLayer& layer : layers) {
    adams.push_back(adam_of(options, *layer.step += 1));
  }
  std::vector<double> weight_sq_norms(layers.size()), step_sq_norms(layers.size()), factors(layers.size());
  std::vector<Sums> sums;
  for_each_batch(layers, batch_size(threads), [&](int64_t begin, int64_t end, const auto& chunks) {
    sums.resize(chunks.size());
    for_each_chunk(threads, chunks, [&](const Chunk& chunk, int64_t c) {
      const LarcAdamLayer& layer = layers[chunk.layer];
      sums[c] = cpu.adam(
          layer.weight + chunk.begin, layer.grad + chunk.begin, layer.exp_avg + chunk.begin,
          layer.exp_avg_sq + chunk.begin, room + chunk.room, chunk.size, adams[chunk.layer]);
    });
    add_up(chunks, sums, weight_sq_norms, step_sq_norms);
    for (int64_t i = begin; i < end; ++i) {
      factors[i] = larc.update_factor(norm_of(weight_sq_norms[i]), norm_of(step_sq_norms[i]), options.lr);
    }
    for_each_chunk(threads, chunks, [&](const Chunk& chunk, int64_t) {
      float* weight = layers[chunk.layer].weight + chunk.begin;
      if (std::isinf(norm_of(weight_sq_norms[chunk.layer]))) {  // then the factor is 1
        descend_from_infinity(weight, room + chunk.room, chunk.size);
      } else {
        cpu.descend(weight, room + chunk.room, chunk.size, static_cast<float>(factors[chunk.layer]));
      }
    });
  });
  return factors;
}

void larc_save(const std::vector<SavedLayer>& layers, const Threads& threads) {
  const Loops& cpu = loops();
  for_each_batch(layers, batch_size(threads), [&](int64_t, int64_t, const auto& chunks) {
    for_each_chunk(threads, chunks, [&](const Chunk& chunk, int64_t) {
      const SavedLayer& layer = layers[chunk.layer];
      cpu.copy(layer.saved + chunk.begin, layer.weight + chunk.begin, chunk.size);
    });
  });
}

std::vector<double> larc_limit(
    const std::vector<SavedLayer>& layers, double lr, const Larc& larc, const Threads& threads) {
  const Loops& cpu = loops();
  std::vector<double> sq_norms(layers.size()), sq_steps(layers.size()), factors(layers.size());
  std::vector<Sums> sums;
  for_each_batch(layers, batch_size(threads), [&](int64_t begin, int64_t end, const auto& chunks) {
    sums.resize(chunks.size());
    for_each_chunk(threads, chunks, [&](const Chunk& chunk, int64_t c) {
      const SavedLayer& layer = layers[chunk.layer];
      sums[c] = cpu.norm_and_distance(layer.saved + chunk.begin, layer.weight + chunk.begin, chunk.size);
    });
    add_up(chunks, sums, sq_norms, sq_steps);
    for (int64_t i = begin; i < end; ++i) {
      factors[i] = larc.update_factor(norm_of(sq_norms[i]), norm_of(sq_steps[i]), lr);
    }
    for_each_chunk(threads, chunks, [&](const Chunk& chunk, int64_t) {
      const SavedLayer& layer = layers[chunk.layer];
      if (factors[chunk.layer] != 1) {
        cpu.interpolate(
            layer.saved + chunk.begin, layer.weight + chunk.begin, chunk.size,
            static_cast<float>(factors[chunk.layer]));
      }
    });
  });
  return factors;
}
