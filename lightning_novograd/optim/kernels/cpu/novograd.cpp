// Layers are worked on in batches that fit the cores' second-level caches: all threads sum the squares of the batch's
// chunks, one thread decides the layers' second moments, and the same threads then update the chunks whose gradients
// they have just read. So a gradient comes from memory once, and a layer costs no call of its own. Where the length of
// the step matters (luc, LARC), the moments go first, their norms are taken on the way, and the weights follow while
// moments and weights are in the cache.

#include "novograd.h"

#include <cmath>

namespace {

constexpr int64_t kElementsPerThread = 1 << 17;         // gradients of 512 KB: about half of a second-level cache
constexpr int64_t kLimitedElementsPerThread = 1 << 16;  // gradients, moments and weights of 768 KB

// Writes the second moments of a layer; returns what its gradient is multiplied with.
float factor_of(const NovoGradLayer& layer, const NovoGrad& options, double sq_norm) {
  sq_norm /= options.grad_scale * options.grad_scale;
  float& stored = *layer.exp_avg_sq;
  double second_moment = stored == 0 ? sq_norm : options.beta2 * stored + (1 - options.beta2) * sq_norm;
  stored = static_cast<float>(second_moment);
  if (layer.max_exp_avg_sq != nullptr) {
    float& maximum = *layer.max_exp_avg_sq;
    if (!(maximum > second_moment) && !std::isnan(maximum)) {
      maximum = static_cast<float>(second_moment);
    }
    second_moment = maximum;
  }
  const double denom = std::sqrt(second_moment) + options.eps;
  return denom == 0 ? 0.0F : static_cast<float>(options.averaging / (denom * options.grad_scale));
}

}  // namespace

std::vector<double> novograd_step(
    const std::vector<NovoGradLayer>& layers, const NovoGrad& options, const Threads& threads) {
  const Loops& cpu = loops();
  const bool limited = options.luc || options.larc;
  const float beta1 = static_cast<float>(options.beta1), decay = static_cast<float>(options.decay);
  const float lr = static_cast<float>(options.lr);
  const size_t count = layers.size();
  std::vector<double> sq_norms(count), weight_sq_norms(count), moment_sq_norms(count);
  std::vector<double> step_sizes(count, options.lr), larc_factors(count, 1.0);
  std::vector<float> factors(count);
  std::vector<double> sums;
  std::vector<Sums> pairs;

  const int64_t per_thread = limited ? kLimitedElementsPerThread : kElementsPerThread;
  for_each_batch(layers, per_thread * threads.number, [&](int64_t begin, int64_t end, const auto& chunks) {
    if (!options.norms_known) {
      sums.resize(chunks.size());
      for_each_chunk(threads, chunks, [&](const Chunk& chunk, int64_t c) {
        sums[c] = cpu.sum_of_squares(layers[chunk.layer].grad + chunk.begin, chunk.size);
      });
      add_up(chunks, sums, sq_norms);
    }
    for (int64_t i = begin; i < end; ++i) {
      factors[i] = factor_of(layers[i], options, options.norms_known ? layers[i].grad_sq_norm : sq_norms[i]);
    }
    if (!limited) {
      for_each_chunk(threads, chunks, [&](const Chunk& chunk, int64_t) {
        const NovoGradLayer& layer = layers[chunk.layer];
        cpu.novograd(
            layer.weight + chunk.begin, layer.grad + chunk.begin, layer.exp_avg + chunk.begin, chunk.size, beta1,
            factors[chunk.layer], decay, lr);
      });
      return;
    }
    pairs.resize(chunks.size());
    for_each_chunk(threads, chunks, [&](const Chunk& chunk, int64_t c) {
      const NovoGradLayer& layer = layers[chunk.layer];
      pairs[c] = cpu.novograd_moment(
          layer.weight + chunk.begin, layer.grad + chunk.begin, layer.exp_avg + chunk.begin, chunk.size, beta1,
          factors[chunk.layer], decay);
    });
    add_up(chunks, pairs, weight_sq_norms, moment_sq_norms);
    for (int64_t i = begin; i < end; ++i) {
      const double weight_norm = std::sqrt(weight_sq_norms[i]), moment_norm = std::sqrt(moment_sq_norms[i]);
      if (options.luc) {
        step_sizes[i] = options.luc->step_size(weight_norm, moment_norm, options.lr);
      }
      if (options.larc) {
        larc_factors[i] = options.larc->update_factor(weight_norm, step_sizes[i] * moment_norm, options.lr);
        step_sizes[i] *= larc_factors[i];
      }
    }
    for_each_chunk(threads, chunks, [&](const Chunk& chunk, int64_t) {
      const NovoGradLayer& layer = layers[chunk.layer];
      cpu.descend(
          layer.weight + chunk.begin, layer.exp_avg + chunk.begin, chunk.size,
          static_cast<float>(step_sizes[chunk.layer]));
    });
  });
  return larc_factors;
}
