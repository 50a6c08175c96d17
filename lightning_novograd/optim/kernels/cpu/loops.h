// The inner loops over one chunk of a layer, as a table: `loops.cpp` fills one for each set of instructions.

#pragma once

#include <cstdint>

constexpr int64_t kLine = 16;        // elements of a cache line
constexpr int64_t kPrefetch = 1024;  // elements ahead

struct Sums {
  double first, second;
};

struct Sgd {
  float lr, weight_decay, momentum, sign;
  bool nesterov;
};

struct Adam {
  float beta1, one_less_beta1, beta2, one_less_beta2, eps, step_size, bias_correction;
  float decay_of_grad, decay_of_weight, sign;
};

struct Loops {
  const char* instructions;

  double (*sum_of_squares)(const float* x, int64_t size);

  void (*copy)(float* to, const float* from, int64_t size);

  // The sums of squares of `before` and of `after - before`.
  Sums (*norm_and_distance)(const float* before, const float* after, int64_t size);

  // after = before + factor * (after - before)
  void (*interpolate)(const float* before, float* after, int64_t size, float factor);

  // weight -= step_size * direction
  void (*descend)(float* weight, const float* direction, int64_t size, float step_size);

  void (*novograd)(
      float* weight, const float* grad, float* exp_avg, int64_t size, float beta1, float factor, float decay, float lr);

  // The same, and the sum of squares of `x`: memory that is only read comes while other memory is written.
  double (*novograd_and_sum_of_squares)(
      float* weight, const float* grad, float* exp_avg, int64_t size, float beta1, float factor, float decay, float lr,
      const float* x, int64_t x_size);

  // The moment alone; returns the sums of squares of weights and of new moments.
  Sums (*novograd_moment)(
      const float* weight, const float* grad, float* exp_avg, int64_t size, float beta1, float factor, float decay);

  void (*sgd)(
      float* weight, const float* grad, float* moment, int64_t size, const Sgd& options, float factor, float share);

  void (*sgd_without_momentum)(
      float* weight, const float* grad, int64_t size, const Sgd& options, float factor);

  // The moments, and the step in `update`; returns the sums of squares of weights and of the step.
  Sums (*adam)(
      const float* weight, const float* grad, float* exp_avg, float* exp_avg_sq, float* update, int64_t size,
      const Adam& options);
};

// The loops for this processor, chosen once; `NOVOGRAD_KERNEL_INSTRUCTIONS` (avx512, avx2, portable) asks for older ones.
const Loops& loops();
