// Layers are worked on in batches that fit the cores' second-level caches. Squares of a batch's gradients are summed while
// the batch before it is updated: that reads and writes at once, which memory does faster than one after the other, and
// needs half as many meetings of the threads. Then one thread decides the batch's second moments, and each thread updates
// the chunks whose gradients it has read. So a gradient comes from memory once, unless its layer is larger than the
// caches, and a layer costs no call of its own. Where the length of the step matters (luc, LARC), the moments go first,
// their norms are taken on the way, and the weights follow while moments and weights are in the cache.

#include "novograd.h"

#include <cmath>
#include <utility>

namespace {

constexpr int64_t kElementsPerThread = 1 << 17;         // gradients of 512 KB: about half of a second-level cache
constexpr int64_t kLimitedElementsPerThread = 1 << 16;  // gradients, moments and weights of 768 KB

// Writes the second moments of a layer; returns what its gradient is multiplied with.
float factor_of(const NovoGradLayer& layer, const NovoGrad& options, double sq_norm) {
  sq_norm /= options.grad_scale * options.grad_scale;
  float& stored = *layer.exp_avg_sq;
  stored = static_cast<float>(stored == 0 ? sq_norm : options.beta2 * stored + (1 - options.beta2) * sq_norm);
  double second_moment = stored;  // as rounded: 0 and infinity mean the same here as in the next step
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

// The share of `count` chunks that thread `t` works on.
struct Share {
  int64_t begin, end;

  Share(int64_t count, int64_t t, int64_t threads)
      : begin(std::min(count, t * per_thread(count, threads))),
        end(std::min(count, begin + per_thread(count, threads))) {}

  static int64_t per_thread(int64_t count, int64_t threads) {
    return (count + threads - 1) / threads;
  }
};

// Without a bound on the length of steps. While a batch is updated, the next one's squares are summed.
void step(const std::vector<NovoGradLayer>& layers, const NovoGrad& options, const Threads& threads) {
  const Loops& cpu = loops();
  const float beta1 = static_cast<float>(options.beta1), decay = static_cast<float>(options.decay);
  const float lr = static_cast<float>(options.lr);
  const int64_t elements = kElementsPerThread * threads.number;
  std::vector<double> sums, sq_norms(layers.size());
  std::vector<float> factors(layers.size());
  Batch batch, next;
  bool goes_on = advance(next, 0, layers, elements);
  while (goes_on || batch.size() != 0) {
    sums.resize(next.chunks.size());
    threads.for_each(threads.number, [&](int64_t t) {
      Share update(batch.size(), t, threads.number);
      Share sum(options.norms_known ? 0 : next.size(), t, threads.number);
      while (update.begin < update.end || sum.begin < sum.end) {
        const bool updates = update.begin < update.end, is_summed = sum.begin < sum.end;
        const Chunk* chunk = updates ? &batch.chunks[update.begin++] : nullptr;
        const Chunk* summed = is_summed ? &next.chunks[sum.begin] : nullptr;
        const float* x = is_summed ? layers[summed->layer].grad + summed->begin : nullptr;
        double total = 0;
        if (!updates) {
          total = cpu.sum_of_squares(x, summed->size);
        } else {
          const NovoGradLayer& layer = layers[chunk->layer];
          total = cpu.novograd_and_sum_of_squares(
              layer.weight + chunk->begin, layer.grad + chunk->begin, layer.exp_avg + chunk->begin, chunk->size, beta1,
              factors[chunk->layer], decay, lr, x, is_summed ? summed->size : 0);
        }
        if (is_summed) {
          sums[sum.begin++] = total;
        }
      }
    });
    if (!options.norms_known) {
      add_up(next.chunks, sums, sq_norms);
    }
    for (int64_t i = next.begin; i < next.end; ++i) {
      factors[i] = factor_of(layers[i], options, options.norms_known ? layers[i].grad_sq_norm : sq_norms[i]);
    }
    std::swap(batch, next);
    goes_on = advance(next, batch.end, layers, elements);
  }
}

}  // namespace

std::vector<double> novograd_step(
    const std::vector<NovoGradLayer>& layers, const NovoGrad& options, const Threads& threads) {
  if (!options.luc && !options.larc) {
    step(layers, options, threads);
    return std::vector<double>(layers.size(), 1.0);
  }
  const Loops& cpu = loops();
  const float beta1 = static_cast<float>(options.beta1), decay = static_cast<float>(options.decay);
  const size_t count = layers.size();
  std::vector<double> sq_norms(count), weight_sq_norms(count), moment_sq_norms(count);
  std::vector<double> step_sizes(count, options.lr), larc_factors(count, 1.0);
  std::vector<float> factors(count);
  std::vector<double> sums;
  std::vector<Sums> pairs;

  for_each_batch(layers, kLimitedElementsPerThread * threads.number, [&](int64_t begin, int64_t end, const auto& chunks) {
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
    pairs.resize(chunks.size());
    for_each_chunk(threads, chunks, [&](const Chunk& chunk, int64_t c) {
      const NovoGradLayer& layer = layers[chunk.layer];
      pairs[c] = cpu.novograd_moment(
          layer.weight + chunk.begin, layer.grad + chunk.begin, layer.exp_avg + chunk.begin, chunk.size, beta1,
          factors[chunk.layer], decay);
    });
    add_up(chunks, pairs, weight_sq_norms, moment_sq_norms);
    for (int64_t i = begin; i < end; ++i) {
      const double weight_norm = norm_of(weight_sq_norms[i]), moment_norm = norm_of(moment_sq_norms[i]);
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
