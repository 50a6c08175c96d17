// The inner loops themselves. `loops.cpp` includes this file once for each set of instructions, in a namespace of its
// name: so there is no include guard, and nothing here may be seen outside.

inline __attribute__((always_inline)) float decayed(float decay, float weight) {
  // Without decay there is none of an infinite weight either, where 0 times infinity would be NaN.
  return decay == 0 ? 0.0F : decay * weight;
}

constexpr int kLanes = 64;

// The square in float32, as torch's sums of squares have it: what is zero or infinite in it must not depend on whether an
// element lies in a lane or in the rest.
inline __attribute__((always_inline)) double square(float x) {
  const float result = x * x;
  return result;
}

// Sums of squares, element i to lane i % 64 in float32; what is left over at the end is added up in float64.
struct Squares {
  float lanes[kLanes] = {};

  inline __attribute__((always_inline)) void add(const float* x) {
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += x[lane] * x[lane];
    }
  }

  inline __attribute__((always_inline)) double total(const float* rest, int64_t size) const {
    double total = 0;
    for (float sum : lanes) {
      total += sum;
    }
    for (int64_t i = 0; i < size; ++i) {
      total += square(rest[i]);
    }
    return total;
  }
};

double sum_of_squares(const float* x, int64_t size) {
  Squares squares;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    squares.add(x + i);
  }
  return squares.total(x + i, size - i);
}

struct Pair {
  float first, second;
};

// The two sums of squares of what element(i) returns for all i below `size`, float32 in lanes as above.
template <typename Element>
inline __attribute__((always_inline)) Sums sums_of_squares(int64_t size, const Element& element) {
  constexpr int kLanes = 32;  // of each sum
  float firsts[kLanes] = {}, seconds[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const Pair pair = element(i + lane);
      firsts[lane] += pair.first * pair.first;
      seconds[lane] += pair.second * pair.second;
    }
  }
  Sums sums{0, 0};
  for (int lane = 0; lane < kLanes; ++lane) {
    sums.first += firsts[lane];
    sums.second += seconds[lane];
  }
  for (; i < size; ++i) {
    const Pair pair = element(i);
    sums.first += square(pair.first);
    sums.second += square(pair.second);
  }
  return sums;
}

void copy(float* __restrict to, const float* __restrict from, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    to[i] = from[i];
  }
}

Sums norm_and_distance(const float* __restrict before, const float* __restrict after, int64_t size) {
  return sums_of_squares(size, [=](int64_t i) __attribute__((always_inline)) {
    return Pair{before[i], after[i] - before[i]};
  });
}

void interpolate(const float* __restrict before, float* __restrict after, int64_t size, float factor) {
  for (int64_t i = 0; i < size; ++i) {
    after[i] = before[i] + factor * (after[i] - before[i]);
  }
}

void descend(float* __restrict weight, const float* __restrict direction, int64_t size, float step_size) {
  for (int64_t i = 0; i < size; ++i) {
    weight[i] -= step_size * direction[i];
  }
}

inline __attribute__((always_inline)) void novograd_elements(
    float* __restrict weight, const float* __restrict grad, float* __restrict exp_avg, int64_t size, float beta1,
    float factor, float decay, float lr) {
  for (int64_t i = 0; i < size; ++i) {
    const float moment = beta1 * exp_avg[i] + factor * grad[i] + decayed(decay, weight[i]);
    exp_avg[i] = moment;
    weight[i] -= lr * moment;
  }
}

void novograd(
    float* __restrict weight, const float* __restrict grad, float* __restrict exp_avg, int64_t size, float beta1,
    float factor, float decay, float lr) {
  novograd_elements(weight, grad, exp_avg, size, beta1, factor, decay, lr);
}

double novograd_and_sum_of_squares(
    float* __restrict weight, const float* __restrict grad, float* __restrict exp_avg, int64_t size, float beta1,
    float factor, float decay, float lr, const float* __restrict x, int64_t x_size) {
  Squares squares;
  int64_t i = 0;
  for (; i + kLanes <= size && i + kLanes <= x_size; i += kLanes) {
    squares.add(x + i);
    novograd_elements(weight + i, grad + i, exp_avg + i, kLanes, beta1, factor, decay, lr);
  }
  novograd_elements(weight + i, grad + i, exp_avg + i, size - i, beta1, factor, decay, lr);
  for (; i + kLanes <= x_size; i += kLanes) {
    squares.add(x + i);
  }
  return squares.total(x + i, x_size - i);
}

Sums novograd_moment(
    const float* __restrict weight, const float* __restrict grad, float* __restrict exp_avg, int64_t size,
    float beta1, float factor, float decay) {
  return sums_of_squares(size, [=](int64_t i) __attribute__((always_inline)) {
    const float moment = beta1 * exp_avg[i] + factor * grad[i] + decayed(decay, weight[i]);
    exp_avg[i] = moment;
    return Pair{weight[i], moment};
  });
}

void sgd(
    float* __restrict weight, const float* __restrict grad, float* __restrict moment, int64_t size,
    const Sgd& given, float factor, float share) {
  const Sgd options = given;  // a copy, which no write to the weights can change
  const auto step = [=](int64_t i) __attribute__((always_inline)) {
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

void sgd_without_momentum(
    float* __restrict weight, const float* __restrict grad, int64_t size, const Sgd& given, float factor) {
  const Sgd options = given;
  for (int64_t i = 0; i < size; ++i) {
    weight[i] -= options.lr * factor * (options.sign * grad[i] + decayed(options.weight_decay, weight[i]));
  }
}

Sums adam(
    const float* __restrict weight, const float* __restrict grad, float* __restrict exp_avg,
    float* __restrict exp_avg_sq, float* __restrict update, int64_t size, const Adam& given) {
  const Adam options = given;
  return sums_of_squares(size, [=](int64_t i) __attribute__((always_inline)) {
    const float g = options.sign * grad[i] + decayed(options.decay_of_grad, weight[i]);
    const float moment = options.beta1 * exp_avg[i] + options.one_less_beta1 * g;
    const float second_moment = options.beta2 * exp_avg_sq[i] + options.one_less_beta2 * g * g;
    exp_avg[i] = moment;
    exp_avg_sq[i] = second_moment;
    const float denom = __builtin_sqrtf(second_moment) * options.bias_correction + options.eps;
    update[i] = options.step_size * moment / denom + decayed(options.decay_of_weight, weight[i]);
    return Pair{weight[i], update[i]};
  });
}

constexpr Loops table(const char* instructions) {
  return {instructions, sum_of_squares, copy, norm_and_distance, interpolate, descend, novograd,
          novograd_and_sum_of_squares, novograd_moment, sgd, sgd_without_momentum, adam};
}
