//! Mixing local and fresh global weights: how much of its own steps a worker keeps at a sync.

/// `local = alpha * local + (1 - alpha) * global`, per element, each operation rounded to `f32`.
///
/// `alpha` 1 keeps the local weights and 0 takes the global ones, both bit for bit. (Streaming
/// DiLoCo, arXiv 2501.18512, uses 0.5.)
///
/// # Panics
/// If the two have not one length.
pub fn blend(local: &mut [f32], global: &[f32], alpha: f32) {
    assert_eq!(
        local.len(),
        global.len(),
        "local and global weights are of one layout"
    );
    if alpha == 0.0 {
        local.copy_from_slice(global);
    } else if alpha != 1.0 {
        let rest = 1.0 - alpha;
        for (local, global) in local.iter_mut().zip(global) {
            *local = alpha * *local + rest * global;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::blend;

    #[test]
    fn alpha_is_the_share_of_the_local_weights() {
        for (alpha, expected) in [(1.0, 8.0), (0.75, 6.5), (0.5, 5.0), (0.0, 2.0)] {
            let mut local = [8.0];
            blend(&mut local, &[2.0], alpha);
            assert_eq!(local, [expected], "{alpha}");
        }
    }

    #[test]
    fn the_ends_are_exact() {
        let (local, global) = ([-0.0_f32, 1e-45, 3.0], [0.1_f32, -0.0, f32::MAX]);
        let mut kept = local;
        blend(&mut kept, &global, 1.0);
        assert_eq!(kept.map(f32::to_bits), local.map(f32::to_bits));
        let mut taken = local;
        blend(&mut taken, &global, 0.0);
        assert_eq!(taken.map(f32::to_bits), global.map(f32::to_bits));
    }
}
