//! Safe wrappers around `shim.cpp`. The only `unsafe` besides the views of `flat.rs` and `lane.rs`
//! and the loading of CUDA.

use std::ffi::{CStr, c_char, c_double, c_int};
use std::ptr::{self, NonNull};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::error::TorchError;

/// A lane as the shim has it.
#[repr(C)]
struct Lane {
    _private: [u8; 0],
}

/// A transfer as the shim has it.
#[repr(C)]
struct Transfer {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn diloco_torch_error() -> *const c_char;
    fn diloco_torch_adamw(
        parameters: *const *const C_tensor,
        gradients: *const *const C_tensor,
        first: *const *const C_tensor,
        second: *const *const C_tensor,
        count: usize,
        step: c_double,
        rate: c_double,
        beta1: c_double,
        beta2: c_double,
        decay: c_double,
        epsilon: c_double,
        gradient_scale: c_double,
    ) -> c_int;
    fn diloco_torch_norm(
        tensors: *const *const C_tensor,
        count: usize,
        norm: *mut c_double,
    ) -> c_int;
    fn diloco_torch_zero(tensors: *const *const C_tensor, count: usize) -> c_int;
    fn diloco_torch_autocast(cuda: c_int, on: c_int) -> c_int;
    fn diloco_torch_lane_open(cuda: c_int, lane: *mut *mut Lane) -> c_int;
    fn diloco_torch_lane_close(lane: *mut Lane);
    fn diloco_torch_lane_buffer(lane: *const Lane, bytes: i64, buffer: *mut *mut C_tensor)
    -> c_int;
    fn diloco_torch_fetch(
        lane: *const Lane,
        source: *const C_tensor,
        transfer: *mut *mut Transfer,
    ) -> c_int;
    fn diloco_torch_transfer_wait(transfer: *mut Transfer, host: *mut *mut C_tensor) -> c_int;
    fn diloco_torch_transfer_drop(transfer: *mut Transfer);
    fn diloco_torch_threads(threads: c_int) -> c_int;
    fn diloco_torch_interop_threads(threads: c_int) -> c_int;
    fn diloco_torch_config() -> *mut c_char;
    fn diloco_torch_headers_version() -> *const c_char;
}

/// Numbers of one AdamW step.
pub(crate) struct AdamW {
    /// This step, counted from 1.
    pub(crate) step: u64,
    pub(crate) rate: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) decay: f64,
    pub(crate) epsilon: f64,
    /// What gradients are divided by first.
    pub(crate) gradient_scale: f64,
}

/// One step on all parameters at once; the four lists have equal shapes.
pub(crate) fn adamw(
    parameters: &[Tensor],
    gradients: &[Tensor],
    first: &[Tensor],
    second: &[Tensor],
    numbers: &AdamW,
) -> Result<(), TorchError> {
    let count = parameters.len();
    assert!(
        [gradients, first, second]
            .iter()
            .all(|list| list.len() == count),
        "lists of equal length"
    );
    let [parameters, gradients, first, second] =
        [parameters, gradients, first, second].map(pointers);
    let AdamW {
        step,
        rate,
        beta1,
        beta2,
        decay,
        epsilon,
        gradient_scale,
    } = *numbers;
    // SAFETY: four arrays of `count` pointers to live tensors, which the callee does not keep.
    check(unsafe {
        diloco_torch_adamw(
            parameters.as_ptr(),
            gradients.as_ptr(),
            first.as_ptr(),
            second.as_ptr(),
            count,
            step as f64,
            rate,
            beta1,
            beta2,
            decay,
            epsilon,
            gradient_scale,
        )
    })
}

/// Euclidean norm over all tensors together; NaN and infinity survive it.
pub(crate) fn norm(tensors: &[Tensor]) -> Result<f64, TorchError> {
    let mut norm = f64::NAN;
    // SAFETY: an array of pointers to live tensors, and a place for the result.
    check(unsafe { diloco_torch_norm(pointers(tensors).as_ptr(), tensors.len(), &raw mut norm) })?;
    Ok(norm)
}

/// Sets all elements to zero.
pub(crate) fn zero(tensors: &[Tensor]) -> Result<(), TorchError> {
    // SAFETY: an array of pointers to live tensors.
    check(unsafe { diloco_torch_zero(pointers(tensors).as_ptr(), tensors.len()) })
}

/// bf16 autocast on this thread until it is dropped.
pub(crate) struct Autocast {
    cuda: c_int,
}

impl Autocast {
    pub(crate) fn new(device: Device) -> Result<Self, TorchError> {
        let cuda = c_int::from(device.is_cuda());
        // SAFETY: plain numbers.
        check(unsafe { diloco_torch_autocast(cuda, 1) })?;
        Ok(Self { cuda })
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: plain numbers. Switching off a mode that is on does not fail.
        let _ = unsafe { diloco_torch_autocast(self.cuda, 0) };
    }
}

/// A lane of the shim, which this closes.
#[derive(Debug)]
pub(crate) struct LaneHandle(NonNull<Lane>);

// SAFETY: a device and a stream by their numbers; libtorch takes calls for them from any thread.
unsafe impl Send for LaneHandle {}

impl LaneHandle {
    pub(crate) fn open(device: Device) -> Result<Self, TorchError> {
        let cuda = match device {
            Device::Cuda(index) => c_int::try_from(index).unwrap_or(c_int::MAX),
            _ => -1,
        };
        let mut lane = ptr::null_mut();
        // SAFETY: a place for the result.
        check(unsafe { diloco_torch_lane_open(cuda, &raw mut lane) })?;
        Ok(Self(NonNull::new(lane).expect("the call succeeded")))
    }

    /// Memory of this machine that the device can read at the speed of the bus; its content is
    /// whatever was there.
    pub(crate) fn buffer(&self, bytes: usize) -> Result<Tensor, TorchError> {
        let bytes = i64::try_from(bytes).map_err(|_| TorchError::new("too many bytes"))?;
        let mut buffer = ptr::null_mut();
        // SAFETY: a lane that is open, and a place for the result.
        check(unsafe { diloco_torch_lane_buffer(self.0.as_ptr(), bytes, &raw mut buffer) })?;
        // SAFETY: a new tensor that nobody else holds.
        Ok(unsafe { Tensor::from_ptr(buffer) })
    }

    /// Begins to copy a contiguous tensor into this machine's memory.
    pub(crate) fn fetch(&self, source: &Tensor) -> Result<TransferHandle, TorchError> {
        assert!(source.is_contiguous(), "only whole memory is copied");
        let mut transfer = ptr::null_mut();
        // SAFETY: a lane that is open, a live tensor whose memory the callee keeps for as long as
        // it is read, and a place for the result.
        check(unsafe { diloco_torch_fetch(self.0.as_ptr(), source.as_ptr(), &raw mut transfer) })?;
        let transfer = NonNull::new(transfer).expect("the call succeeded");
        Ok(TransferHandle(transfer))
    }
}

impl Drop for LaneHandle {
    fn drop(&mut self) {
        // SAFETY: made by `open` and closed once.
        unsafe { diloco_torch_lane_close(self.0.as_ptr()) }
    }
}

/// A copy on its way.
#[derive(Debug)]
pub(crate) struct TransferHandle(NonNull<Transfer>);

impl TransferHandle {
    /// Waits for its end; the copy.
    pub(crate) fn wait(self) -> Result<Tensor, TorchError> {
        let mut host = ptr::null_mut();
        // SAFETY: a transfer that was begun, and a place for the result.
        check(unsafe { diloco_torch_transfer_wait(self.0.as_ptr(), &raw mut host) })?;
        // SAFETY: a new handle, which is ours.
        Ok(unsafe { Tensor::from_ptr(host) })
    }
}

impl Drop for TransferHandle {
    fn drop(&mut self) {
        // SAFETY: made by `fetch` and dropped once.
        unsafe { diloco_torch_transfer_drop(self.0.as_ptr()) }
    }
}

/// Threads of this thread's parallel regions.
pub(crate) fn set_threads(threads: usize) -> Result<(), TorchError> {
    let threads = c_int::try_from(threads).unwrap_or(c_int::MAX);
    // SAFETY: a plain number.
    check(unsafe { diloco_torch_threads(threads) })
}

/// Threads between operators. Our models run one operator after another; one thread is kept from
/// being many.
pub(crate) fn limit_interop_threads() {
    // SAFETY: a plain number. It fails when parallel work has begun, and then nothing is lost.
    let _ = unsafe { diloco_torch_interop_threads(1) };
}

/// How the loaded library was built.
pub(crate) fn config() -> String {
    // SAFETY: the callee returns a C string from `malloc`, which is ours to free.
    unsafe {
        let text = diloco_torch_config();
        if text.is_null() {
            return String::new();
        }
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast());
        copy
    }
}

/// The version that this crate was compiled against.
pub(crate) fn headers_version() -> String {
    // SAFETY: a C string constant.
    unsafe { CStr::from_ptr(diloco_torch_headers_version()) }
        .to_string_lossy()
        .into_owned()
}

fn pointers(tensors: &[Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(Tensor::as_ptr).collect()
}

fn check(result: c_int) -> Result<(), TorchError> {
    if result == 0 {
        return Ok(());
    }
    // SAFETY: a C string that belongs to this thread and is not written before it is copied here.
    let text = unsafe { CStr::from_ptr(diloco_torch_error()) };
    Err(TorchError::new(&text.to_string_lossy()))
}
