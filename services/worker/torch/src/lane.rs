//! Copies between a device and this machine's memory, through page-locked memory, which the bus
//! reads and writes at its full speed. What comes off a device comes on a stream of its own, beside
//! what the device computes meanwhile.
//!
//! On the CPU the same calls copy at once, so that what is built on them is tested without a card.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::slice;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::error::TorchError;
use crate::shim::{LaneHandle, TransferHandle};

/// Copies off the device that are under way together: one on the bus, one whose source is being
/// computed, one that is being taken.
const UNDER_WAY_MAX: usize = 3;
/// Elements of one copy of a longer vector, 16 MiB: the bus is at its full speed from 1 MiB on, and
/// the locked memory of a few copies stays small beside any model.
const PIECE_ELEMENTS: usize = 4 << 20;
/// Bytes that one thread copies between two places of this machine's memory.
const COPY_BYTES: usize = 1 << 20;

/// The way to and from one device.
#[derive(Debug)]
pub(crate) struct Lane {
    device: Device,
    handle: LaneHandle,
}

/// Bytes that came off a device.
#[derive(Debug)]
pub(crate) struct Fetched(Tensor);

impl Lane {
    /// The lane of a device.
    pub(crate) fn open(device: Device) -> Result<Self, TorchError> {
        let handle = LaneHandle::open(device)?;
        Ok(Self { device, handle })
    }

    /// A tensor of bytes on the device. The copy is on its way when this returns.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<Tensor, TorchError> {
        let buffer = self.handle.buffer(bytes.len())?;
        // SAFETY: as many bytes as the buffer was made for; nobody else has it yet.
        let place = unsafe { slice::from_raw_parts_mut(buffer.data_ptr().cast(), bytes.len()) };
        copy(bytes, place);
        if self.device == Device::Cpu {
            return Ok(buffer);
        }
        // The buffer's memory is not used again before the copy has ended: libtorch notes who reads
        // page-locked memory of its own.
        Ok(buffer.f_to_dtype_layout((Kind::Uint8, self.device), true, false)?)
    }

    /// Overwrites a vector on the device from element `start` on.
    pub(crate) fn write(
        &self,
        vector: &Tensor,
        start: usize,
        values: &[f32],
    ) -> Result<(), TorchError> {
        let mut start = start as i64;
        for piece in values.chunks(PIECE_ELEMENTS) {
            let sent = self.send(bytes_of(piece))?.f_view_dtype(Kind::Float)?;
            let count = piece.len() as i64;
            vector.f_narrow(0, start, count)?.f_copy_(&sent)?;
            start += count;
        }
        Ok(())
    }

    /// Copies a vector on the device to `values`, which are as many.
    pub(crate) fn read(&self, vector: &Tensor, values: &mut [f32]) -> Result<(), TorchError> {
        let count = values.len();
        let sources = (0..count).step_by(PIECE_ELEMENTS).map(|start| {
            let length = PIECE_ELEMENTS.min(count - start);
            Ok(vector.f_narrow(0, start as i64, length as i64)?)
        });
        let mut places = values.chunks_mut(PIECE_ELEMENTS);
        self.fetch(sources, &mut |fetched| {
            let place = places.next().expect("a place for each piece");
            copy(fetched.as_ref(), bytes_of_mut(place));
            ControlFlow::Continue(())
        })
    }

    /// Fetches one contiguous tensor after another and hands each over, in order, while the next
    /// ones are computed and copied, until `take` breaks. After an error nothing is handed over any
    /// more.
    pub(crate) fn fetch(
        &self,
        mut sources: impl Iterator<Item = Result<Tensor, TorchError>>,
        take: &mut dyn FnMut(Fetched) -> ControlFlow<()>,
    ) -> Result<(), TorchError> {
        let mut under_way: VecDeque<TransferHandle> = VecDeque::new();
        loop {
            let source = if under_way.len() < UNDER_WAY_MAX {
                sources.next()
            } else {
                None
            };
            match source {
                Some(source) => under_way.push_back(self.handle.fetch(&source?)?),
                None => {
                    let Some(first) = under_way.pop_front() else {
                        return Ok(());
                    };
                    if take(Fetched(first.wait()?)).is_break() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

impl AsRef<[u8]> for Fetched {
    fn as_ref(&self) -> &[u8] {
        let Self(tensor) = self;
        let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
        if bytes == 0 {
            return &[];
        }
        assert!(
            tensor.device() == Device::Cpu && tensor.is_contiguous(),
            "it was fetched to this memory"
        );
        // SAFETY: the bytes of a contiguous tensor, which live as long as it; nobody writes them
        // once the copy is waited for.
        unsafe { slice::from_raw_parts(tensor.data_ptr().cast(), bytes) }
    }
}

/// Copies on all cores: one alone is slower than the bus.
fn copy(from: &[u8], to: &mut [u8]) {
    to.par_chunks_mut(COPY_BYTES)
        .zip(from.par_chunks(COPY_BYTES))
        .for_each(|(to, from)| to.copy_from_slice(from));
}

fn bytes_of(values: &[f32]) -> &[u8] {
    // SAFETY: the same memory; every byte of an fp32 is a byte.
    unsafe { slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn bytes_of_mut(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: the same memory; any four bytes are an fp32.
    unsafe { slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
