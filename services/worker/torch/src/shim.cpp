// Calls of ATen that tch does not bind: lists of tensors changed in place, autocast by device type,
// copies through page-locked memory, the memory that a device holds, version and configuration.
// Functions that return an int return 0, or 1 with a message for this thread in
// diloco_torch_error().
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/version.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

namespace {

thread_local std::string last_error;

template <typename Work>
int guarded(Work work) {
  try {
    work();
    return 0;
  } catch (const c10::Error &error) {
    last_error = error.what_without_backtrace();
  } catch (const std::exception &error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an exception of unknown type";
  }
  return 1;
}

std::vector<at::Tensor> list(at::Tensor *const *tensors, size_t count) {
  std::vector<at::Tensor> result;
  result.reserve(count);
  for (size_t i = 0; i < count; i++) result.push_back(*tensors[i]);
  return result;
}

at::DeviceType device_type(int cuda) { return cuda ? at::kCUDA : at::kCPU; }

// Memory of this machine that copies go through, page-locked unless the device is the CPU.
struct Slot {
  // Undefined before the first use of the slot.
  at::Tensor memory;
  // The tensor that the copy under way reads. It is held until that copy has ended, so that
  // libtorch does not reuse its memory before.
  at::Tensor source;
  std::optional<c10::Event> done;

  // Waits for the copy that used the slot last.
  void wait() {
    if (done) done->synchronize();
    source = at::Tensor();
  }
};

// Slots, and a stream beside the one that computes. The lane of a CPU has no stream: a copy there
// has ended when the call returns.
struct Lane {
  at::Device device;
  std::optional<c10::Stream> stream;
  int64_t slot_bytes;
  std::vector<Slot> slots;

  // The stream that computes.
  c10::Stream computing() const { return c10::impl::VirtualGuardImpl(device.type()).getStream(device); }
};

}  // namespace

extern "C" {

const char *diloco_torch_error() { return last_error.c_str(); }

// Makes one AdamW step. First divides the gradients by gradient_scale, in place. step counts from 1.
int diloco_torch_adamw(at::Tensor *const *parameters, at::Tensor *const *gradients, at::Tensor *const *first,
                       at::Tensor *const *second, size_t count, double step, double rate, double beta1, double beta2,
                       double decay, double epsilon, double gradient_scale) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto options = parameters[0]->options().dtype(at::kFloat).requires_grad(false);
    std::vector<at::Tensor> steps(count, at::full({}, step, options));
    std::optional<at::Tensor> scale;
    if (gradient_scale != 1.0) scale = at::full({}, gradient_scale, options);
    at::_fused_adamw_(list(parameters, count), list(gradients, count), list(first, count), list(second, count),
                      at::TensorList{}, steps, rate, beta1, beta2, decay, epsilon, /*amsgrad=*/false,
                      /*maximize=*/false, scale);
  });
}

// Computes the Euclidean norm over all tensors together.
int diloco_torch_norm(at::Tensor *const *tensors, size_t count, double *norm) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    *norm = at::stack(at::_foreach_norm(list(tensors, count), 2)).norm().item<double>();
  });
}

// Fills the tensors with zeros.
int diloco_torch_zero(at::Tensor *const *tensors, size_t count) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    at::_foreach_zero_(list(tensors, count));
  });
}

// Turns bf16 autocast on or off for this thread.
int diloco_torch_autocast(int cuda, int on) {
  return guarded([&] {
    auto device = device_type(cuda);
    if (on) {
      at::autocast::set_autocast_dtype(device, at::kBFloat16);
      at::autocast::set_autocast_enabled(device, true);
      at::autocast::increment_nesting();
    } else {
      at::autocast::set_autocast_enabled(device, false);
      if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    }
  });
}

// Opens a lane to the CUDA device with this number; -1 means the CPU.
int diloco_torch_lane_open(int cuda, size_t slots, int64_t slot_bytes, Lane **lane) {
  return guarded([&] {
    at::Device device(at::kCPU);
    std::optional<c10::Stream> stream;
    if (cuda >= 0) {
      device = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(cuda));
      stream = c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device);
    }
    *lane = new Lane{device, stream, slot_bytes, std::vector<Slot>(slots)};
  });
}

// Closes a lane after its device has finished all work. If the device has failed, returns 1 and
// never frees the lane's memory: to take back page-locked memory that a stream has used, libtorch
// records an event, which always fails on such a device; it would then throw in a destructor, and
// std::terminate would end the process.
int diloco_torch_lane_close(Lane *lane) {
  int failed = guarded([&] {
    if (lane->stream) c10::impl::VirtualGuardImpl(lane->device.type()).synchronizeDevice(lane->device.index());
  });
  if (!failed) delete lane;
  return failed;
}

// Waits for the copy that used a slot last, and gives the address of the slot's memory.
int diloco_torch_slot_take(Lane *lane, size_t at, void **memory) {
  return guarded([&] {
    Slot &slot = lane->slots.at(at);
    slot.wait();
    if (!slot.memory.defined()) {
      auto options = at::TensorOptions(at::kByte).pinned_memory(lane->stream.has_value());
      slot.memory = at::zeros({lane->slot_bytes}, options);
    }
    *memory = slot.memory.mutable_data_ptr();
  });
}

// Begins to copy the first bytes of a taken slot to place, a tensor of bytes on the device, until
// place is full.
int diloco_torch_slot_send(Lane *lane, size_t at, at::Tensor *place) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    Slot &slot = lane->slots.at(at);
    place->copy_(slot.memory.narrow(0, 0, place->numel()), /*non_blocking=*/true);
    if (lane->stream) {
      if (!slot.done) slot.done.emplace(lane->device.type());
      slot.done->record(lane->computing());
    }
  });
}

// Begins to copy source, a contiguous tensor of bytes on the device, to a taken slot. The device
// starts the copy after the kernels that compute source; the caller does not wait for them.
int diloco_torch_slot_fetch(Lane *lane, size_t at, at::Tensor *source) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    Slot &slot = lane->slots.at(at);
    auto place = slot.memory.narrow(0, 0, source->numel());
    if (!lane->stream) {
      place.copy_(*source);
      return;
    }
    c10::Event ready(lane->device.type());
    ready.record(lane->computing());
    ready.block(*lane->stream);
    c10::StreamGuard beside(*lane->stream);
    // The slot holds the tensor. If libtorch kept track of its use instead (record_stream), it
    // would record an event when the memory is freed, which throws on a device that has failed.
    slot.source = *source;
    place.copy_(*source, /*non_blocking=*/true);
    if (!slot.done) slot.done.emplace(lane->device.type());
    slot.done->record(*lane->stream);
  });
}

// Waits until the device has finished the computations that it was given.
int diloco_torch_lane_settle(Lane *lane) {
  return guarded([&] {
    if (lane->stream) lane->computing().synchronize();
  });
}

// Counts the bytes of a CUDA device that libtorch's allocator holds.
int diloco_torch_device_memory(int cuda, int64_t *bytes) {
  return guarded([&] {
    auto stats = at::getDeviceAllocator(at::kCUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(cuda));
    auto aggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *bytes = stats.reserved_bytes[aggregate].current;
  });
}

// Sets the number of threads that compute one operation.
int diloco_torch_threads(int threads) {
  return guarded([&] { at::set_num_threads(threads); });
}

// Sets the number of threads that run operations beside each other. Only the first call has an
// effect, and only before any parallel work.
int diloco_torch_interop_threads(int threads) {
  return guarded([&] { at::set_num_interop_threads(threads); });
}

// Describes the build of the loaded library, in a text that the caller frees.
char *diloco_torch_config() {
  std::string text;
  if (guarded([&] { text = at::show_config(); })) text = last_error;
  return strdup(text.c_str());
}

// Returns the version of the headers that this file was compiled against.
const char *diloco_torch_headers_version() { return TORCH_VERSION; }
}
