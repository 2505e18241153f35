//! A flat fp32 vector on a device, and views of it as tensors. On the CPU it is also a Rust slice,
//! without a copy; elsewhere its values come and go by the device's lane.

use std::slice;

use tch::{Device, Kind, Tensor};
use trainer::TrainerError;

use crate::error::TorchError;
use crate::lane::Lane;

/// A flat vector; the tensors that [`Flat::views`] made alias it.
///
/// Nothing outside this crate's trainer holds a view, and the trainer hands out slices only for as
/// long as it is borrowed, so that libtorch never writes what a slice shows.
#[derive(Debug)]
pub(crate) struct Flat {
    tensor: Tensor,
    elements: usize,
    /// A copy of the vector in this machine's memory, made if the vector lies elsewhere.
    host: Vec<f32>,
}

impl Flat {
    /// All zeros.
    pub(crate) fn zeros(elements: usize, device: Device) -> Result<Self, TorchError> {
        let size = i64::try_from(elements).map_err(|_| TorchError::new("too many parameters"))?;
        let tensor = Tensor::f_zeros([size], (Kind::Float, device))?;
        Ok(Self {
            tensor,
            elements,
            host: Vec::new(),
        })
    }

    /// One tensor per shape, one after another; together they cover the vector. With `gradients`,
    /// each is a leaf, at which a backward pass stores a gradient.
    pub(crate) fn views(
        &self,
        shapes: &[Vec<i64>],
        gradients: bool,
    ) -> Result<Vec<Tensor>, TorchError> {
        let mut start = 0;
        let mut views = Vec::with_capacity(shapes.len());
        for shape in shapes {
            let size: i64 = shape.iter().product();
            let view = self
                .tensor
                .f_narrow(0, start, size)?
                .f_view(shape.as_slice())?
                .f_detach()?;
            views.push(view.f_set_requires_grad(gradients)?);
            start += size;
        }
        assert_eq!(start, self.elements as i64, "the shapes cover the vector");
        Ok(views)
    }

    /// Overwrites a part.
    pub(crate) fn write(
        &mut self,
        lane: Option<&mut Lane>,
        start: usize,
        values: &[f32],
    ) -> Result<(), TrainerError> {
        let end = start
            .checked_add(values.len())
            .filter(|end| *end <= self.elements);
        let Some(end) = end else {
            let reason = format!(
                "{} values from {start} on, of {} parameters",
                values.len(),
                self.elements
            );
            return Err(TrainerError::Input(reason));
        };
        match lane {
            None => self.slice_mut()[start..end].copy_from_slice(values),
            Some(lane) => lane.write(&self.tensor, start, values)?,
        }
        Ok(())
    }

    /// All values: in place on the CPU, else a copy.
    pub(crate) fn read(&mut self, lane: Option<&mut Lane>) -> Result<&[f32], TorchError> {
        if lane.is_none() {
            return Ok(self.slice_mut());
        }
        let mut host = std::mem::take(&mut self.host);
        let copied = self.copy_to(lane, &mut host);
        self.host = host;
        copied.map(|()| &*self.host)
    }

    /// Copies all values to this machine's memory.
    pub(crate) fn copy_to(
        &mut self,
        lane: Option<&mut Lane>,
        values: &mut Vec<f32>,
    ) -> Result<(), TorchError> {
        let Some(lane) = lane else {
            values.clear();
            values.extend_from_slice(self.slice_mut());
            return Ok(());
        };
        if values.len() != self.elements {
            // Fresh zeros cost nothing until all cores write to them.
            *values = vec![0.0; self.elements];
        }
        lane.read(&self.tensor, values)
    }

    /// Makes all values zero again.
    pub(crate) fn clear(&mut self) -> Result<(), TorchError> {
        let _ = self.tensor.f_zero_()?;
        Ok(())
    }

    /// The tensor, for operations on the device.
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// All values, of a vector on the CPU.
    pub(crate) fn slice_mut(&mut self) -> &mut [f32] {
        assert!(
            self.tensor.device() == Device::Cpu && self.tensor.is_contiguous(),
            "a vector in this memory"
        );
        assert_eq!(
            (self.tensor.kind(), self.tensor.numel()),
            (Kind::Float, self.elements)
        );
        // SAFETY: `elements` contiguous fp32 values that live as long as the tensor; the views are
        // written to only by calls that borrow the trainer, and this crate's threads only copy from
        // and to slices that such a call was given.
        unsafe { slice::from_raw_parts_mut(self.tensor.data_ptr().cast(), self.elements) }
    }
}
