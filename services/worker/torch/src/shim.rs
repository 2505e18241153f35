//! Safe wrappers around `shim.cpp`. The only `unsafe` besides the views of `flat.rs` and `lane.rs`
//! and the loading of CUDA.

use std::ffi::{CStr, c_char, c_double, c_int, c_void};
use std::ptr::{self, NonNull};
use std::slice;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::error::TorchError;

/// A lane in the shim's own form.
#[repr(C)]
struct RawLane {
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
    fn diloco_torch_lane_open(
        cuda: c_int,
        slots: usize,
        slot_bytes: i64,
        lane: *mut *mut RawLane,
    ) -> c_int;
    fn diloco_torch_lane_close(lane: *mut RawLane) -> c_int;
    fn diloco_torch_slot_take(lane: *mut RawLane, at: usize, memory: *mut *mut c_void) -> c_int;
    fn diloco_torch_slot_send(lane: *mut RawLane, at: usize, place: *const C_tensor) -> c_int;
    fn diloco_torch_slot_fetch(lane: *mut RawLane, at: usize, source: *const C_tensor) -> c_int;
    fn diloco_torch_lane_settle(lane: *mut RawLane) -> c_int;
    fn diloco_torch_device_memory(cuda: c_int, bytes: *mut i64) -> c_int;
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
    /// The divisor that is applied to gradients first.
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

/// Euclidean norm over all tensors together. It is NaN or infinite if a value is.
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

/// A lane of the shim, with its slots. The copies of a slot follow each other; each begins after
/// the slot was taken.
#[derive(Debug)]
pub(crate) struct LaneHandle {
    lane: NonNull<RawLane>,
    slots: usize,
    slot_bytes: usize,
}

// SAFETY: a device, a stream and memory, none of them bound to a thread.
unsafe impl Send for LaneHandle {}

impl LaneHandle {
    pub(crate) fn open(
        device: Device,
        slots: usize,
        slot_bytes: usize,
    ) -> Result<Self, TorchError> {
        let cuda = match device {
            Device::Cuda(index) => c_int::try_from(index).unwrap_or(c_int::MAX),
            _ => -1,
        };
        let bytes = i64::try_from(slot_bytes).map_err(|_| TorchError::new("too many bytes"))?;
        let mut lane = ptr::null_mut();
        // SAFETY: plain numbers, and a place for the result.
        check(unsafe { diloco_torch_lane_open(cuda, slots, bytes, &raw mut lane) })?;
        Ok(Self {
            lane: NonNull::new(lane).expect("the call succeeded"),
            slots,
            slot_bytes,
        })
    }

    /// The memory of a slot, after the copy that used it last has ended.
    pub(crate) fn take(&mut self, at: usize) -> Result<&mut [u8], TorchError> {
        assert!(at < self.slots, "a slot that there is");
        let mut memory = ptr::null_mut();
        // SAFETY: a lane that is open, and a place for the result.
        check(unsafe { diloco_torch_slot_take(self.lane.as_ptr(), at, &raw mut memory) })?;
        // SAFETY: initialised memory of `slot_bytes` that lives as long as the lane. No copy is on
        // its way to or from it, and the next one needs this handle, which is borrowed.
        Ok(unsafe { slice::from_raw_parts_mut(memory.cast(), self.slot_bytes) })
    }

    /// Begins to copy from a slot, which the caller has taken, to a contiguous tensor of bytes. As
    /// many bytes are copied as the tensor has.
    pub(crate) fn send(&mut self, at: usize, place: &Tensor) -> Result<(), TorchError> {
        self.check_copy(at, place);
        // SAFETY: a slot of this lane that holds as many bytes, and a live tensor.
        check(unsafe { diloco_torch_slot_send(self.lane.as_ptr(), at, place.as_ptr()) })
    }

    /// Begins to copy a contiguous tensor of bytes to a slot, which the caller has taken.
    pub(crate) fn fetch(&mut self, at: usize, source: &Tensor) -> Result<(), TorchError> {
        self.check_copy(at, source);
        // SAFETY: a slot of this lane with room for as many bytes, and a live tensor, whose memory
        // the callee keeps for as long as it is read.
        check(unsafe { diloco_torch_slot_fetch(self.lane.as_ptr(), at, source.as_ptr()) })
    }

    /// Waits until the device has finished its computations.
    pub(crate) fn settle(&mut self) -> Result<(), TorchError> {
        // SAFETY: a lane that is open.
        check(unsafe { diloco_torch_lane_settle(self.lane.as_ptr()) })
    }

    fn check_copy(&self, at: usize, tensor: &Tensor) {
        assert!(
            at < self.slots && tensor.numel() <= self.slot_bytes,
            "a copy that fits its slot"
        );
        assert!(
            tensor.kind() == Kind::Uint8 && tensor.is_contiguous(),
            "only whole memory is copied"
        );
    }
}

impl Drop for LaneHandle {
    fn drop(&mut self) {
        // SAFETY: made by `open` and closed once.
        let closed = check(unsafe { diloco_torch_lane_close(self.lane.as_ptr()) });
        if let Err(error) = closed {
            tracing::warn!(%error, "the device has failed; its page-locked memory is not taken back");
        }
    }
}

/// Bytes of a CUDA device that libtorch holds for tensors, including memory that it keeps for its
/// next tensors.
pub(crate) fn device_memory(device: Device) -> Result<u64, TorchError> {
    let Device::Cuda(index) = device else {
        return Err(TorchError::new("only CUDA devices count their memory"));
    };
    let index = c_int::try_from(index).unwrap_or(c_int::MAX);
    let mut bytes = 0;
    // SAFETY: a plain number, and a place for the result.
    check(unsafe { diloco_torch_device_memory(index, &raw mut bytes) })?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Threads of this thread's parallel regions.
pub(crate) fn set_threads(threads: usize) -> Result<(), TorchError> {
    let threads = c_int::try_from(threads).unwrap_or(c_int::MAX);
    // SAFETY: a plain number.
    check(unsafe { diloco_torch_threads(threads) })
}

/// Threads between operators. Our models run one operator after another, so one thread is enough.
pub(crate) fn limit_interop_threads() {
    // SAFETY: a plain number. It fails when parallel work has begun, and then nothing is lost.
    let _ = unsafe { diloco_torch_interop_threads(1) };
}

/// The build configuration of the loaded library.
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

/// The most bytes of tensors that `work` holds at one time on this thread, beyond those that were
/// held before.
#[cfg(test)]
pub(crate) fn most_memory(work: impl FnOnce()) -> usize {
    unsafe extern "C" {
        fn diloco_torch_watch_begin();
        fn diloco_torch_watch_end() -> i64;
    }
    // SAFETY: no arguments; the pair is closed below.
    unsafe { diloco_torch_watch_begin() };
    work();
    // SAFETY: it was begun on this thread.
    let most = unsafe { diloco_torch_watch_end() };
    usize::try_from(most).expect("a peak is not below the begin")
}
