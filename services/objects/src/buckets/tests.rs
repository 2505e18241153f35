use identity::StoreKeys;

use super::*;
use crate::endpoint::Trust;

/// Where nothing listens, an object of an acceptable length is at least tried.
#[tokio::test]
async fn an_object_that_is_too_large_is_not_sent() {
    let endpoint = Endpoint::new("http://127.0.0.1:1", "us-east-1", Trust::PlainLoopback);
    let buckets = Buckets::new(
        &endpoint.unwrap(),
        &StoreKeys::generate().admin,
        StoreClock::default(),
        TransferLimits::default(),
        Duration::ZERO,
    );
    let buckets = buckets.unwrap();
    let object = ObjectRef::of(b"another");
    let upload = async |more: usize| {
        let bytes = vec![0; OBJECT_BYTES_MAX.get() as usize + more];
        buckets.put_hashed(object, bytes.into()).await.unwrap_err()
    };
    let (largest, larger) = (upload(0).await, upload(1).await);
    assert!(
        !matches!(largest, ObjectError::TooLarge { .. }),
        "{largest:?}"
    );
    assert!(matches!(larger, ObjectError::TooLarge { .. }), "{larger:?}");
}

#[test]
fn the_local_clock_is_that_of_the_machine_and_goes_on() {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = local_now();
    let off = u128::from(first.get()).abs_diff(wall.as_millis());
    assert!(off < 60_000, "{off} ms");
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(5) {
        std::hint::spin_loop();
    }
    assert!(local_now().get() >= first.get() + 4);
}
