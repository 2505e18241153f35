//! A fast path on AMD processors. The MKL inside libtorch asks this function whether the processor
//! is one of Intel's, and runs slow code if it is not, whatever the processor can do. A definition
//! in the program comes before MKL's own. On an Intel processor the answer stays the same. The
//! function is undocumented, and replacing it changes the last bits of fp32 results; so the
//! replacement is a feature of this crate.

/// Answers MKL's question with yes.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn mkl_serv_intel_cpu_true() -> i32 {
    1
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_program_exports_it_before_libtorch() {
        // SAFETY: a C string constant; the result is only compared.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"mkl_serv_intel_cpu_true".as_ptr()) };
        assert_eq!(
            found.addr(),
            super::mkl_serv_intel_cpu_true as *const () as usize
        );
    }
}
