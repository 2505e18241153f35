//! Set-up of libtorch: finding CUDA, checking the version, threads, devices.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::sync::Once;

use tch::{Cuda, Device};
use trainer::TrainerError;

use crate::shim;

/// The device to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first CUDA device where there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU; CUDA is not even looked for.
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
}

/// The loaded libtorch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// Its version.
    pub version: String,
    /// CUDA devices that it can use.
    pub cuda_devices: usize,
}

/// Most threads that may be requested: more than any machine has cores.
const THREADS_MAX: usize = 4096;

/// Loads CUDA unless `device` rules it out, checks the library's version and sets the number of
/// threads. Call it first thing: CUDA that is loaded after libtorch has looked for it is not found
/// any more. Further calls are harmless.
///
/// # Errors
/// [`TrainerError::LibraryMissing`]: the library is of another version than this build needs.
pub fn init(device: DeviceChoice, threads: usize) -> Result<Library, TrainerError> {
    if device != DeviceChoice::Cpu {
        load_cuda();
    }
    let version = version()?;
    static INTEROP: Once = Once::new();
    INTEROP.call_once(shim::limit_interop_threads);
    use_threads(threads)?;
    let cuda_devices = match device {
        DeviceChoice::Cpu => 0,
        _ if Cuda::is_available() => usize::try_from(Cuda::device_count()).unwrap_or(0),
        _ => 0,
    };
    Ok(Library {
        version,
        cuda_devices,
    })
}

/// True when the processor multiplies bf16 itself: AVX512-BF16, which AMX comes with. Without it
/// the products are emulated and take many times longer than in fp32.
pub fn processor_has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Sets the number of threads for work that this thread starts; libtorch keeps it per thread.
pub(crate) fn use_threads(threads: usize) -> Result<(), TrainerError> {
    thread_local! {
        static PRESENT: Cell<usize> = const { Cell::new(0) };
    }
    if !(1..=THREADS_MAX).contains(&threads) {
        return Err(TrainerError::Input(format!(
            "threads is {threads}, expected 1 to {THREADS_MAX}"
        )));
    }
    if PRESENT.get() != threads {
        shim::set_threads(threads)?;
        PRESENT.set(threads);
    }
    Ok(())
}

impl DeviceChoice {
    /// The device, after checking that it is there.
    pub(crate) fn resolve(self, library: &Library) -> Result<Device, TrainerError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if library.cuda_devices == 0 => Ok(Device::Cpu),
            Self::Auto => Ok(Device::Cuda(0)),
            Self::Cuda(index) if index < library.cuda_devices => Ok(Device::Cuda(index)),
            Self::Cuda(index) => {
                let found = library.cuda_devices;
                Err(TrainerError::DeviceMissing(format!(
                    "device is cuda:{index}, but {found} CUDA devices were found"
                )))
            }
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cuda = |number: &str| number.parse().ok().map(Self::Cuda);
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(cuda),
        }
        .ok_or_else(|| format!("device is {text:?}, expected auto, cpu, cuda or cuda:<number>"))
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// The linker leaves CUDA out of the program because nothing refers to it, so that one program
/// serves machines with and without it; loading the library registers its kernels.
fn load_cuda() {
    static LOAD: Once = Once::new();
    LOAD.call_once(|| {
        // SAFETY: loading runs the library's initialisers, as intended. The library is never
        // unloaded.
        let handle = unsafe {
            libc::dlopen(
                c"libtorch_cuda.so".as_ptr(),
                libc::RTLD_NOW | libc::RTLD_GLOBAL,
            )
        };
        tracing::debug!(found = !handle.is_null(), "looked for libtorch_cuda.so");
    });
}

/// The run-time version, after a comparison with the version that this crate was compiled against:
/// another version may load and then misbehave.
fn version() -> Result<String, TrainerError> {
    let built = shim::headers_version();
    let config = shim::config();
    let found = config
        .split("TORCH_VERSION=")
        .nth(1)
        .and_then(|rest| rest.split([',', '\n', ' ']).next());
    let found = found.unwrap_or("unknown").to_owned();
    let number = |version: &str| version.split('+').next().map(str::to_owned);
    if number(&found) == number(&built) {
        Ok(found)
    } else {
        Err(TrainerError::LibraryMissing(format!(
            "libtorch is {found}, this build needs {built}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use schemas::Code;

    use super::*;

    #[test]
    fn the_library_is_the_pinned_one() {
        let library = init(DeviceChoice::Cpu, 1).expect("the right version");
        assert!(library.version.starts_with("2.11.0"), "{}", library.version);
        assert!(init(DeviceChoice::Cpu, 0).is_err());
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let library = Library {
            version: String::new(),
            cuda_devices: 1,
        };
        assert_eq!(
            DeviceChoice::Auto.resolve(&library).expect("there"),
            Device::Cuda(0)
        );
        assert_eq!(
            DeviceChoice::Cpu.resolve(&library).expect("there"),
            Device::Cpu
        );
        let error = DeviceChoice::Cuda(1)
            .resolve(&library)
            .expect_err("only one");
        assert_eq!(error.code(), Code::DeviceMissing);
    }

    #[test]
    fn device_texts_round_trip() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(
                text.parse::<DeviceChoice>().expect("valid").to_string(),
                text
            );
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert!(
            "gpu".parse::<DeviceChoice>().is_err() && "cuda:x".parse::<DeviceChoice>().is_err()
        );
    }
}
