// What the binding needs of torch's stable ABI, straight from its C functions: tensors and lists as operators get and
// return them. (torch's own C++ wrappers over them keep each tensor in a shared_ptr, which costs hundreds of layers a
// noticeable time, and draw in string streams, whose symbols older standard libraries lack.)

#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

using Doubles = std::vector<double>;
using Indices = std::vector<int64_t>;

// Throws if a call into torch has failed; torch has printed why.
inline void check(AOTITorchError error, const char* what) {
  if (error != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error(what);
  }
}

#define CHECKED(call) check(call, "lightning_novograd: " #call " failed")

// Numbers and handles as torch's stack and lists hold them: in the first bytes of 8.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

template <typename Value>
StableIValue packed(Value value) {
  StableIValue result = 0;
  static_assert(sizeof(value) <= sizeof(result));
  std::memcpy(&result, &value, sizeof(value));
  return result;
}

template <typename Value>
Value unpacked(StableIValue packed) {
  Value value;
  std::memcpy(&value, &packed, sizeof(value));
  return value;
}

class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor& operator=(Tensor&&) = delete;
  ~Tensor() {
    if (handle_ != nullptr) {
      aoti_torch_delete_tensor_object(handle_);
    }
  }

  AtenTensorHandle handle() const {
    return handle_;
  }

  int64_t numel() const {
    int64_t numel;
    CHECKED(aoti_torch_get_numel(handle_, &numel));
    return numel;
  }

  // Whether it is a contiguous float32 tensor on the CPU.
  bool is_plain_float() const {
    int32_t dtype, layout, device;
    CHECKED(aoti_torch_get_dtype(handle_, &dtype));
    CHECKED(aoti_torch_get_layout(handle_, &layout));
    CHECKED(aoti_torch_get_device_type(handle_, &device));
    bool is_contiguous = dtype == aoti_torch_dtype_float32() && layout == aoti_torch_layout_strided() &&
        device == aoti_torch_device_type_cpu();
    if (is_contiguous) {
      CHECKED(aoti_torch_is_contiguous(handle_, &is_contiguous));
    }
    return is_contiguous;
  }

  bool is_plain_number() const {
    return is_plain_float() && numel() == 1;
  }

  bool has_shape_of(const Tensor& other) const {
    int64_t dim, other_dim, *sizes, *other_sizes;
    CHECKED(aoti_torch_get_dim(handle_, &dim));
    CHECKED(aoti_torch_get_dim(other.handle_, &other_dim));
    CHECKED(aoti_torch_get_sizes(handle_, &sizes));
    CHECKED(aoti_torch_get_sizes(other.handle_, &other_sizes));
    return dim == other_dim && std::equal(sizes, sizes + dim, other_sizes);
  }

  // Its memory, to be written to: moves a copy-on-write tensor to memory of its own.
  float* written() const {
    check_memory();
    void* data;
    CHECKED(torch_get_mutable_data_ptr(handle_, &data));
    check_address(data);
    return static_cast<float*>(data);
  }

  const float* read() const {
    const float* data = read_unless_zeros();
    check_address(data);
    return data;
  }

  // The same; null where there never was any memory, as in the zeros of forward-mode differentiation.
  const float* read_unless_zeros() const {
    check_memory();
    const void* data;
    CHECKED(torch_get_const_data_ptr(handle_, &data));
    return static_cast<const float*>(data);
  }

 private:
  // Throws if memory was taken from the tensor, as FSDP does between steps: torch would give an address all the same.
  void check_memory() const {
    int64_t offset, bytes;
    CHECKED(aoti_torch_get_storage_offset(handle_, &offset));
    CHECKED(aoti_torch_get_storage_size(handle_, &bytes));
    const int64_t elements = numel();
    if (elements != 0 && (offset + elements) * static_cast<int64_t>(sizeof(float)) > bytes) {
      throw_no_memory();
    }
  }

  // Throws if there never was any.
  void check_address(const void* data) const {
    if (data == nullptr && numel() != 0) {
      throw_no_memory();
    }
  }

  [[noreturn]] static void throw_no_memory() {
    throw std::runtime_error("NovoGrad, LARC: a layer, its gradient or its state has no memory; was it freed?");
  }

  AtenTensorHandle handle_;
};

using Tensors = std::vector<Tensor>;

// A list that belongs to the caller of torch's functions, as a step to and from a vector.
class List {
 public:
  explicit List(StableListHandle handle) : handle_(handle) {}
  explicit List(size_t capacity) : handle_(nullptr) {
    CHECKED(torch_new_list_reserve_size(capacity, &handle_));
  }
  List(const List&) = delete;
  List& operator=(const List&) = delete;
  ~List() {
    if (handle_ != nullptr) {
      torch_delete_list(handle_);
    }
  }

  size_t size() const {
    size_t size;
    CHECKED(torch_list_size(handle_, &size));
    return size;
  }

  StableIValue operator[](size_t index) const {
    StableIValue element;
    CHECKED(torch_list_get_item(handle_, index, &element));
    return element;
  }

  void push_back(StableIValue element) {
    CHECKED(torch_list_push_back(handle_, element));
  }

  StableIValue release() {
    return packed(std::exchange(handle_, nullptr));
  }

 private:
  StableListHandle handle_;
};

// An operator's arguments, to be read one after the other, and all of them: what is read is owned.
class Arguments {
 public:
  explicit Arguments(const StableIValue* stack) : next_(stack) {}

  template <typename Number>
  Number number() {
    return unpacked<Number>(*next_++);
  }

  Tensor tensor() {
    return Tensor(number<AtenTensorHandle>());
  }

  Tensors tensors() {
    return vector<Tensor>([](StableIValue value) { return Tensor(unpacked<AtenTensorHandle>(value)); });
  }

  template <typename Number>
  std::vector<Number> numbers() {
    return vector<Number>([](StableIValue value) { return unpacked<Number>(value); });
  }

 private:
  template <typename Element, typename Convert>
  std::vector<Element> vector(const Convert& convert) {
    const List list(number<StableListHandle>());
    const size_t size = list.size();
    std::vector<Element> result;
    result.reserve(size);
    for (size_t i = 0; i < size; ++i) {
      result.push_back(convert(list[i]));
    }
    return result;
  }

  const StableIValue* next_;
};

// A vector of numbers as an operator returns it.
template <typename Number>
StableIValue as_list(const std::vector<Number>& values) {
  List list(values.size());
  for (Number value : values) {
    list.push_back(packed(value));
  }
  return list.release();
}
