//! Copies between a device and this machine's memory, through a few slots of page-locked memory,
//! which the bus reads and writes at its full speed. Callers give and get ordinary bytes: the
//! processor copies them to or from one slot while the bus works on another. Copies from a device
//! run on a stream of their own, while the device computes.
//!
//! On the CPU the same calls copy at once, so that code that uses them can be tested without a
//! card.
//!
//! A device that has failed fails for the rest of the process, and libtorch cannot take its
//! page-locked memory back. The slots of its lane stay locked then; nothing else is lost.

use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};
use std::slice;

use bytes::Bytes;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::error::TorchError;
use crate::shim::LaneHandle;

/// Copies that are under way together, each in a slot: the bus works on one, the device computes
/// the source of another, and the processor reads or writes a third.
const UNDER_WAY_MAX: usize = 3;
/// Bytes of a slot: the bus is at its full speed from 1 MiB on, and the slots of a lane, 48 MiB in
/// all, are small beside any model.
const SLOT_BYTES: usize = 16 << 20;
/// Bytes that one thread copies between two places of this machine's memory.
const COPY_BYTES: usize = 1 << 20;

/// The way to and from one device.
#[derive(Debug)]
pub(crate) struct Lane {
    device: Device,
    handle: LaneHandle,
    slot_bytes: usize,
    /// The slot that was used least recently.
    next: usize,
}

/// A stretch of a tensor on the device, not longer than a slot.
struct Piece {
    bytes: Tensor,
    /// Bytes of the whole tensor.
    of: usize,
}

impl Lane {
    /// The lane of a device.
    pub(crate) fn open(device: Device) -> Result<Self, TorchError> {
        Self::with_slots(device, SLOT_BYTES)
    }

    /// The lane of a device, with slots of `slot_bytes`.
    pub(crate) fn with_slots(device: Device, slot_bytes: usize) -> Result<Self, TorchError> {
        Ok(Self {
            device,
            handle: LaneHandle::open(device, UNDER_WAY_MAX, slot_bytes)?,
            slot_bytes,
            next: 0,
        })
    }

    /// A tensor of bytes on the device. The last copy is on its way when this returns.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<Tensor, TorchError> {
        let place = Tensor::f_empty([bytes.len() as i64], (Kind::Uint8, self.device))?;
        self.fill(&place, bytes)?;
        Ok(place)
    }

    /// Overwrites a vector on the device from element `start` on.
    pub(crate) fn write(
        &mut self,
        vector: &Tensor,
        start: usize,
        values: &[f32],
    ) -> Result<(), TorchError> {
        let place = vector.f_narrow(0, start as i64, values.len() as i64)?;
        self.fill(&place.f_view_dtype(Kind::Uint8)?, bytes_of(values))
    }

    /// Overwrites a contiguous tensor of bytes on the device with `bytes`, which has the same
    /// length.
    fn fill(&mut self, place: &Tensor, bytes: &[u8]) -> Result<(), TorchError> {
        for range in stretches(bytes.len(), self.slot_bytes) {
            let slot = self.take_slot();
            let memory = self.handle.take(slot)?;
            copy(&bytes[range.clone()], &mut memory[..range.len()]);
            self.handle.send(slot, &narrow(place, &range)?)?;
        }
        Ok(())
    }

    /// Copies a vector on the device to `values`, which has the same length.
    pub(crate) fn read(&mut self, vector: &Tensor, values: &mut [f32]) -> Result<(), TorchError> {
        let (places, mut filled) = (bytes_of_mut(values), 0);
        let source = std::iter::once(Ok(vector.shallow_clone()));
        self.fetch_pieces(source, &mut |bytes, _| {
            copy(bytes, &mut places[filled..][..bytes.len()]);
            filled += bytes.len();
            ControlFlow::Continue(())
        })
    }

    /// Fetches one contiguous tensor after another and hands over the bytes of each, in order,
    /// while the next ones are computed and copied, until `take` breaks. After an error nothing is
    /// handed over any more.
    pub(crate) fn fetch(
        &mut self,
        sources: impl Iterator<Item = Result<Tensor, TorchError>>,
        take: &mut dyn FnMut(Bytes) -> ControlFlow<()>,
    ) -> Result<(), TorchError> {
        let (mut whole, mut filled) = (Vec::new(), 0);
        self.fetch_pieces(sources, &mut |bytes, of| {
            if filled == 0 {
                // Fresh zeros cost nothing until all cores write to them.
                whole = vec![0; of];
            }
            copy(bytes, &mut whole[filled..][..bytes.len()]);
            filled += bytes.len();
            if filled < of {
                return ControlFlow::Continue(());
            }
            filled = 0;
            take(std::mem::take(&mut whole).into())
        })
    }

    /// Fetches one contiguous tensor after another, cut into pieces that fit a slot. `take`
    /// receives the bytes of each piece, in order, and the length of its tensor.
    fn fetch_pieces(
        &mut self,
        sources: impl Iterator<Item = Result<Tensor, TorchError>>,
        take: &mut dyn FnMut(&[u8], usize) -> ControlFlow<()>,
    ) -> Result<(), TorchError> {
        let slot_bytes = self.slot_bytes;
        let mut pieces = sources.flat_map(|source| cut(source, slot_bytes));
        let mut under_way: VecDeque<(usize, Piece)> = VecDeque::new();
        loop {
            let piece = if under_way.len() < UNDER_WAY_MAX {
                pieces.next()
            } else {
                None
            };
            match piece {
                Some(piece) => {
                    let (piece, slot) = (piece?, self.take_slot());
                    self.handle.take(slot)?;
                    self.handle.fetch(slot, &piece.bytes)?;
                    under_way.push_back((slot, piece));
                }
                None => {
                    let Some((slot, Piece { bytes, of })) = under_way.pop_front() else {
                        return Ok(());
                    };
                    let memory = self.handle.take(slot)?;
                    if take(&memory[..bytes.numel()], of).is_break() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Waits until the device has finished its computations, and reports an error that no call has
    /// reported yet.
    pub(crate) fn settle(&mut self) -> Result<(), TorchError> {
        self.handle.settle()
    }

    fn take_slot(&mut self) -> usize {
        let slot = self.next;
        self.next = (slot + 1) % UNDER_WAY_MAX;
        slot
    }
}

/// The pieces of a contiguous tensor: at least one, so that a tensor without elements is copied
/// too.
fn cut(source: Result<Tensor, TorchError>, slot_bytes: usize) -> Vec<Result<Piece, TorchError>> {
    let bytes = source.and_then(|source| Ok(source.f_view([-1])?.f_view_dtype(Kind::Uint8)?));
    let bytes = match bytes {
        Ok(bytes) => bytes,
        Err(error) => return vec![Err(error)],
    };
    let of = bytes.numel();
    if of <= slot_bytes {
        return vec![Ok(Piece { bytes, of })];
    }
    stretches(of, slot_bytes)
        .map(|range| {
            let bytes = narrow(&bytes, &range)?;
            Ok(Piece { bytes, of })
        })
        .collect()
}

/// `count` bytes as stretches of at most `longest`.
fn stretches(count: usize, longest: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count)
        .step_by(longest)
        .map(move |start| start..count.min(start + longest))
}

fn narrow(bytes: &Tensor, range: &Range<usize>) -> Result<Tensor, TorchError> {
    Ok(bytes.f_narrow(0, range.start as i64, range.len() as i64)?)
}

/// Copies on all cores: one alone is slower than the bus.
fn copy(from: &[u8], to: &mut [u8]) {
    to.par_chunks_mut(COPY_BYTES)
        .zip(from.par_chunks(COPY_BYTES))
        .for_each(|(to, from)| to.copy_from_slice(from));
}

fn bytes_of(values: &[f32]) -> &[u8] {
    // SAFETY: the slices cover the same memory, and every byte of an fp32 is a valid byte.
    unsafe { slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn bytes_of_mut(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: the slices cover the same memory, and any four bytes are a valid fp32.
    unsafe { slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small, and no multiple of anything that is copied here.
    const SLOT: usize = 12;

    fn lane() -> Lane {
        Lane::with_slots(Device::Cpu, SLOT).expect("a processor")
    }

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|at| at as f32 + 0.5).collect()
    }

    /// Lengths around one slot, all slots, and more than all slots.
    const LENGTHS: [usize; 10] = [0, 1, 2, 3, 4, 8, 9, 10, 11, 40];

    #[test]
    fn vectors_of_any_number_of_pieces_come_back_as_they_went() {
        let mut lane = lane();
        for count in LENGTHS {
            let vector = Tensor::zeros([count as i64 + 5], (Kind::Float, Device::Cpu));
            lane.write(&vector, 2, &numbers(count)).expect("written");
            let mut back = vec![9.0; count + 5];
            lane.read(&vector, &mut back).expect("read");
            let expected = [vec![0.0; 2], numbers(count), vec![0.0; 3]].concat();
            assert_eq!(back, expected, "{count}");
        }
    }

    #[test]
    fn bytes_of_any_number_of_pieces_arrive_in_order() {
        let mut lane = lane();
        for count in LENGTHS {
            let bytes: Vec<u8> = (0..count as u8).map(|at| at ^ 0x5a).collect();
            let sent = lane.send(&bytes).expect("sent");
            let other = lane.send(&[7; 2 * SLOT + 1]).expect("sent");
            let sources = [&sent, &other, &sent].map(|tensor| Ok(tensor.shallow_clone()));
            let mut taken = Vec::new();
            let fetched = lane.fetch(sources.into_iter(), &mut |bytes| {
                taken.push(bytes);
                ControlFlow::Continue(())
            });
            fetched.expect("fetched");
            assert_eq!(taken, [&bytes[..], &[7; 2 * SLOT + 1], &bytes], "{count}");
        }
    }

    #[test]
    fn what_is_handed_over_stays_when_its_slot_is_used_again() {
        let mut lane = lane();
        let tensor = |value: i64| Ok(Tensor::full([30], value, (Kind::Uint8, Device::Cpu)));
        let mut taken = Vec::new();
        lane.fetch((0..9).map(tensor), &mut |bytes| {
            taken.push(bytes);
            ControlFlow::Continue(())
        })
        .expect("fetched");
        let _sent = lane.send(&[99; 3 * SLOT]).expect("sent");
        for (value, bytes) in taken.iter().enumerate() {
            assert_eq!(bytes[..], [value as u8; 30]);
        }
    }

    #[test]
    fn a_source_that_fails_ends_what_comes_after_it_in_the_middle_of_a_tensor_too() {
        let mut lane = lane();
        let tensor = || Ok(Tensor::full([30], 1, (Kind::Uint8, Device::Cpu)));
        let sources = [
            tensor(),
            tensor(),
            Err(TorchError::new("no memory")),
            tensor(),
        ];
        let mut taken = 0;
        let error = lane
            .fetch(sources.into_iter(), &mut |_| {
                taken += 1;
                ControlFlow::Continue(())
            })
            .expect_err("a source failed");
        assert_eq!(error.to_string(), "libtorch: no memory");
        assert!(taken < 2, "the copies on their way are not waited for");
        let mut back = [0.0; 9];
        let vector = Tensor::from_slice(&numbers(9));
        lane.read(&vector, &mut back).expect("the lane goes on");
        assert_eq!(back[..], numbers(9));
    }
}
