// The few ATen calls that tch does not bind: lists of tensors changed in place, autocast by device, version and
// configuration. Every function returns 0, or 1 with a message for this thread in diloco_torch_error().
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <torch/version.h>

#include <cstring>
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
