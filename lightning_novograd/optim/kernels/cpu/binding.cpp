// The kernels as torch operators, through torch's stable ABI alone: one library serves every torch release from 2.10.
//
// Callers have made sure that no tensor is of a subclass or has its negative bit set: the stable ABI cannot tell.
// All memory is asked for before anything is written and before any thread starts, because asking can fail, and because
// it moves a copy-on-write tensor to memory of its own. Version counters are the caller's.

#include <algorithm>
#include <map>

#include "larc.h"
#include "novograd.h"
#include "stable_torch.h"

namespace {

Threads torchs_threads() {
  uint32_t number;
  CHECKED(torch_get_num_threads(&number));
  const auto run = [](int64_t count, Threads::Work work, void* context) {
    CHECKED(torch_parallel_for(0, count, 1, work, context));
  };
  return {static_cast<int64_t>(number), run};
}

// Whether the kernels can take a layer, given the tensors that have one element per weight.
template <typename... Others>
bool fits(const Tensor& param, const Others&... others) {
  return param.is_plain_float() && ((others.is_plain_float() && others.has_shape_of(param)) && ...);
}

// Memory that the threads write to. Layers that share some must be stepped one after the other.
class Memory {
 public:
  // Whether these elements have no byte in common with those that were added; then they are added.
  bool add(const float* begin, int64_t size) {
    if (size == 0) {
      return true;
    }
    const auto next = ends_.upper_bound(begin);  // the first that ends behind `begin`
    if (next != ends_.end() && next->second < begin + size) {
      return false;
    }
    ends_.emplace_hint(next, begin + size, begin);
    return true;
  }

 private:
  std::map<const float*, const float*> ends_;
};

// The layers that a step takes, with the memory of the tensors that it writes, and the indices of both kinds.
template <typename Layer>
struct Taken {
  std::vector<Layer> layers;
  Indices indices, others;
};

// Takes the layers for which fitting(i) is true, that share no memory and whose gradients have some. All of `write(i)` and
// then all of `only_read(i)` is asked for, since the first can move what tensors share.
template <typename Layer, typename Fitting, typename Write, typename Read>
Taken<Layer> take(size_t count, const Fitting& fitting, const Write& write, const Read& only_read) {
  Indices fit;
  std::vector<Layer> layers;
  Taken<Layer> taken;
  for (size_t i = 0; i < count; ++i) {
    if (fitting(i)) {
      fit.push_back(static_cast<int64_t>(i));
      layers.push_back(write(i));
    } else {
      taken.others.push_back(static_cast<int64_t>(i));
    }
  }
  Memory memory;
  for (size_t position = 0; position < fit.size(); ++position) {
    Layer& layer = layers[position];
    only_read(layer, fit[position]);
    const bool has_gradient = layer.grad != nullptr || layer.size == 0;
    if (has_gradient && memory.add(layer.weight, layer.size)) {
      taken.indices.push_back(fit[position]);
      taken.layers.push_back(layer);
    } else {
      taken.others.push_back(fit[position]);
    }
  }
  std::sort(taken.others.begin(), taken.others.end());
  return taken;
}

// Values of the taken layers, at their places among all.
Doubles spread(const Doubles& values, const Indices& indices, size_t count) {
  Doubles result(count, 1.0);
  for (size_t position = 0; position < indices.size(); ++position) {
    result[indices[position]] = values[position];
  }
  return result;
}

// From {trust_coefficient, clip, eps, min_update}.
Larc larc_from(const Doubles& options) {
  return {options.at(0), options.at(1) != 0, options.at(2), options.at(3)};
}

float* with_room_for(const Tensor& scratch, int64_t elements) {
  if (scratch.numel() < elements) {
    List sizes(1);
    sizes.push_back(packed(elements));
    AtenTensorHandle handle;
    CHECKED(aoti_torch_new_tensor_handle(scratch.handle(), &handle));
    StableIValue stack[] = {
        packed(handle), sizes.release(), packed(nullptr)};
    CHECKED(torch_call_dispatcher("aten::resize_", "", stack, TORCH_FEATURE_VERSION));
    Tensor(unpacked<AtenTensorHandle>(stack[0]));
  }
  return scratch.written();
}

// Operators take their arguments from the stack, and leave there what they return: torch's calling convention.

void novograd_step_(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensors params = arguments.tensors(), grads = arguments.tensors(), exp_avgs = arguments.tensors(),
                exp_avg_sqs = arguments.tensors(), max_exp_avg_sqs = arguments.tensors();
  const Doubles grad_sq_norms = arguments.numbers<double>();
  NovoGrad options{};
  for (double* option : {&options.beta1, &options.beta2, &options.lr, &options.decay, &options.eps,
                         &options.averaging, &options.grad_scale}) {
    *option = arguments.number<double>();
  }
  const Doubles luc = arguments.numbers<double>(), larc = arguments.numbers<double>();
  options.norms_known = !grad_sq_norms.empty();
  if (!luc.empty()) {
    options.luc = Luc{luc.at(0), luc.at(1)};
  }
  if (!larc.empty()) {
    options.larc = larc_from(larc);
  }
  const bool amsgrad = !max_exp_avg_sqs.empty();
  const auto taken = take<NovoGradLayer>(
      params.size(),
      [&](size_t i) {
        return fits(params[i], grads.at(i), exp_avgs.at(i)) && exp_avg_sqs.at(i).is_plain_number() &&
            (!amsgrad || max_exp_avg_sqs.at(i).is_plain_number());
      },
      [&](size_t i) {
        return NovoGradLayer{
            params[i].written(), nullptr, exp_avgs[i].written(), exp_avg_sqs[i].written(),
            amsgrad ? max_exp_avg_sqs[i].written() : nullptr, params[i].numel(),
            options.norms_known ? grad_sq_norms.at(i) : 0};
      },
      [&](NovoGradLayer& layer, size_t i) { layer.grad = grads[i].read_unless_zeros(); });
  const Doubles factors = novograd_step(taken.layers, options, torchs_threads());
  stack[0] = as_list(taken.others);
  stack[1] = as_list(spread(factors, taken.indices, params.size()));
}

void larc_sgd_step_(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensors params = arguments.tensors(), grads = arguments.tensors(), moments = arguments.tensors();
  const Doubles shares = arguments.numbers<double>();
  LarcSgd options{};
  for (double* option : {&options.lr, &options.weight_decay, &options.momentum}) {
    *option = arguments.number<double>();
  }
  options.nesterov = arguments.number<bool>();
  options.maximize = arguments.number<bool>();
  const Doubles larc = arguments.numbers<double>();
  const bool has_moments = !moments.empty();
  const auto taken = take<LarcSgdLayer>(
      params.size(),
      [&](size_t i) { return fits(params[i], grads.at(i)) && (!has_moments || fits(params[i], moments.at(i))); },
      [&](size_t i) {
        return LarcSgdLayer{
            params[i].written(), nullptr, has_moments ? moments[i].written() : nullptr,
            has_moments ? static_cast<float>(shares.at(i)) : 0, params[i].numel()};
      },
      [&](LarcSgdLayer& layer, size_t i) { layer.grad = grads[i].read_unless_zeros(); });
  const Doubles factors = larc_sgd_step(taken.layers, options, larc_from(larc), torchs_threads());
  stack[0] = as_list(spread(factors, taken.indices, params.size()));
  stack[1] = as_list(taken.others);
}

void larc_adam_step_(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensors params = arguments.tensors(), grads = arguments.tensors(), exp_avgs = arguments.tensors(),
                exp_avg_sqs = arguments.tensors(), steps = arguments.tensors();
  LarcAdam options{};
  for (double* option : {&options.beta1, &options.beta2, &options.eps, &options.lr, &options.weight_decay}) {
    *option = arguments.number<double>();
  }
  options.decoupled = arguments.number<bool>();
  options.maximize = arguments.number<bool>();
  const Doubles larc = arguments.numbers<double>();
  const Tensor scratch = arguments.tensor();
  const auto taken = take<LarcAdamLayer>(
      params.size(),
      [&](size_t i) {
        return fits(params[i], grads.at(i), exp_avgs.at(i), exp_avg_sqs.at(i)) && steps.at(i).is_plain_number();
      },
      [&](size_t i) {
        return LarcAdamLayer{
            params[i].written(), nullptr, exp_avgs[i].written(), exp_avg_sqs[i].written(), steps[i].written(),
            params[i].numel()};
      },
      [&](LarcAdamLayer& layer, size_t i) { layer.grad = grads[i].read_unless_zeros(); });
  const Threads threads = torchs_threads();
  float* room = with_room_for(scratch, larc_adam_room(taken.layers, threads));
  const Doubles factors = larc_adam_step(taken.layers, options, larc_from(larc), room, threads);
  stack[0] = as_list(spread(factors, taken.indices, params.size()));
  stack[1] = as_list(taken.others);
}

// Indices of layers that the kernels cannot take.
void misfits(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensors params = arguments.tensors(), grads = arguments.tensors();
  Indices result;
  Memory memory;
  for (size_t i = 0; i < params.size(); ++i) {
    if (!fits(params[i], grads.at(i)) || !memory.add(params[i].read(), params[i].numel())) {
      result.push_back(static_cast<int64_t>(i));
    }
  }
  stack[0] = as_list(result);
}

// Copies the layers one after the other into `before`, which grows as needed, and returns where each begins; nothing is
// copied and nothing returned where a layer does not fit.
void larc_save_(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensor before = arguments.tensor();
  const Tensors params = arguments.tensors();
  Memory memory;
  std::vector<SavedLayer> layers;
  Indices starts;
  int64_t elements = 0;
  for (const Tensor& param : params) {
    if (!param.is_plain_float() || !memory.add(param.read(), param.numel())) {
      stack[0] = as_list(Indices{});
      return;
    }
    layers.push_back({const_cast<float*>(param.read()), nullptr, param.numel()});
    starts.push_back(elements);
    elements += in_lines(param.numel());
  }
  float* copies = with_room_for(before, elements);
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].saved = copies + starts[i];
  }
  larc_save(layers, torchs_threads());
  stack[0] = as_list(starts);
}

// Scales the way from the copies in `before` to `params`; returns the factors, or none if a layer no longer fits.
void larc_limit_(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Tensor before = arguments.tensor();
  const Indices starts = arguments.numbers<int64_t>();
  const Tensors params = arguments.tensors();
  const double lr = arguments.number<double>();
  const Larc larc = larc_from(arguments.numbers<double>());
  for (size_t i = 0; i < params.size(); ++i) {
    if (!params[i].is_plain_float() || starts.at(i) + params[i].numel() > before.numel()) {
      stack[0] = as_list(Doubles{});
      return;
    }
  }
  std::vector<SavedLayer> layers;
  float* copies = before.written();
  for (size_t i = 0; i < params.size(); ++i) {
    layers.push_back({params[i].written(), copies + starts[i], params[i].numel()});
  }
  stack[0] = as_list(larc_limit(layers, lr, larc, torchs_threads()));
}

struct Operator {
  const char* schema;
  const char* name;
  void (*run)(StableIValue* stack, uint64_t arguments, uint64_t results);
};

constexpr Operator kOperators[] = {
    {"novograd_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
     "Tensor(d!)[] max_exp_avg_sqs, float[] grad_sq_norms, float beta1, float beta2, float lr, float decay, "
     "float eps, float averaging, float grad_scale, float[] luc, float[] larc) -> (int[], float[])",
     "novograd_step_", novograd_step_},
    {"larc_sgd_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] moments, float[] shares, float lr, "
     "float weight_decay, float momentum, bool nesterov, bool maximize, float[] larc) -> (float[], int[])",
     "larc_sgd_step_", larc_sgd_step_},
    {"larc_adam_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
     "Tensor(d!)[] steps, float beta1, float beta2, float eps, float lr, float weight_decay, bool decoupled, "
     "bool maximize, float[] larc, Tensor(e!) scratch) -> (float[], int[])",
     "larc_adam_step_", larc_adam_step_},
    {"larc_save_(Tensor(a!) before, Tensor[] params) -> int[]", "larc_save_", larc_save_},
    {"larc_limit_(Tensor before, int[] starts, Tensor(a!)[] params, float lr, float[] larc) -> float[]",
     "larc_limit_", larc_limit_},
    {"misfits(Tensor[] params, Tensor[] grads) -> int[]", "misfits", misfits},
};

bool registered() {
  TorchLibraryHandle definitions, implementations;  // which stay as long as the process
  bool good = aoti_torch_library_init_fragment("lightning_novograd", __FILE__, __LINE__, &definitions) ==
          AOTI_TORCH_SUCCESS &&
      aoti_torch_library_init_impl(
          "lightning_novograd", "CompositeImplicitAutograd", __FILE__, __LINE__, &implementations) ==
          AOTI_TORCH_SUCCESS;
  for (const Operator& op : kOperators) {
    good = good && aoti_torch_library_def(definitions, op.schema) == AOTI_TORCH_SUCCESS &&
        torch_library_impl(implementations, op.name, op.run, TORCH_FEATURE_VERSION) == AOTI_TORCH_SUCCESS;
  }
  return good;
}

}  // namespace

#define VISIBLE extern "C" __attribute__((visibility("default")))

// What the library was built from: the loader reads it in the file, before it loads anything.
VISIBLE const char lightning_novograd_sources[] = "lightning_novograd sources " NOVOGRAD_SOURCES;

// Makes the operators known to torch; whether that went well. Not done when the library is loaded, where a failure
// would end the process.
VISIBLE bool lightning_novograd_register() {
  static const bool good = registered();  // once, however often the Python module that calls this is imported
  return good;
}

// The instructions that the loops use in this process.
VISIBLE const char* lightning_novograd_instructions() {
  return loops().instructions;
}
