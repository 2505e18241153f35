// The few ATen calls that tch does not bind: lists of tensors changed in place, autocast by device, page-locked memory,
// copies on a stream of their own, version and configuration. Every function returns 0, or 1 with a message for this thread in diloco_torch_error().
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/version.h>

#include <cstring>
#include <memory>
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

// A stream beside the one that computes. The CPU has none: a copy there is done when the call returns.
struct Lane {
  at::Device device;
  std::optional<c10::Stream> stream;
};

// A copy that is on its way to this machine's memory.
struct Transfer {
  at::Tensor host;
  std::optional<c10::Event> done;
};

}  // namespace

extern "C" {

const char *diloco_torch_error() { return last_error.c_str(); }

// One AdamW step. Gradients are divided by gradient_scale first, in place. step counts from 1.
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

// Euclidean norm over all tensors together.
int diloco_torch_norm(at::Tensor *const *tensors, size_t count, double *norm) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    *norm = at::stack(at::_foreach_norm(list(tensors, count), 2)).norm().item<double>();
  });
}

int diloco_torch_zero(at::Tensor *const *tensors, size_t count) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    at::_foreach_zero_(list(tensors, count));
  });
}

// bf16 autocast on this thread, off or on.
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

// The lane of a CUDA device by its number, of the CPU for -1.
int diloco_torch_lane_open(int cuda, Lane **lane) {
  return guarded([&] {
    if (cuda < 0) {
      *lane = new Lane{at::Device(at::kCPU), std::nullopt};
      return;
    }
    at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(cuda));
    *lane = new Lane{device, c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device)};
  });
}

void diloco_torch_lane_close(Lane *lane) { delete lane; }

// Memory of this machine, for bytes that go to the lane's device: page-locked if that is not the CPU.
int diloco_torch_lane_buffer(Lane *lane, int64_t bytes, at::Tensor **buffer) {
  return guarded([&] {
    auto options = at::TensorOptions(at::kByte).pinned_memory(lane->stream.has_value());
    *buffer = new at::Tensor(at::empty({bytes}, options));
  });
}

// Begins to copy a contiguous tensor into memory of the same kind, as soon as what computes it is done.
int diloco_torch_fetch(Lane *lane, at::Tensor *source, Transfer **transfer) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto options = at::TensorOptions(source->scalar_type()).pinned_memory(lane->stream.has_value());
    auto begun = std::make_unique<Transfer>();
    begun->host = at::empty(source->sizes(), options);
    if (lane->stream) {
      c10::impl::VirtualGuardImpl device(lane->device.type());
      c10::Event ready(lane->device.type());
      ready.record(device.getStream(lane->device));
      ready.block(*lane->stream);
      c10::StreamGuard beside(*lane->stream);
      begun->host.copy_(*source, /*non_blocking=*/true);
      // Its memory is not given to another tensor before this stream is done with it.
      source->record_stream(*lane->stream);
      begun->done.emplace(lane->device.type());
      begun->done->record(*lane->stream);
    } else {
      begun->host.copy_(*source);
    }
    *transfer = begun.release();
  });
}

// Waits for the copy.
int diloco_torch_transfer_wait(Transfer *transfer, at::Tensor **host) {
  return guarded([&] {
    if (transfer->done) transfer->done->synchronize();
    *host = new at::Tensor(transfer->host);
  });
}

// Its memory stays locked until a copy that is not waited for has ended.
void diloco_torch_transfer_drop(Transfer *transfer) { delete transfer; }

int diloco_torch_threads(int threads) {
  return guarded([&] { at::set_num_threads(threads); });
}

// Only the first call before any parallel work has an effect.
int diloco_torch_interop_threads(int threads) {
  return guarded([&] { at::set_num_interop_threads(threads); });
}

// How the library at hand was built; the caller frees it.
char *diloco_torch_config() {
  std::string text;
  if (guarded([&] { text = at::show_config(); })) text = last_error;
  return strdup(text.c_str());
}

// The version of the headers that this file was compiled against.
const char *diloco_torch_headers_version() { return TORCH_VERSION; }
}
