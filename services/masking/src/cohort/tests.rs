use proptest::prelude::*;
use schemas::Epoch;
use serde_bytes::ByteArray;

use super::*;
use crate::unmask;

const SPEC: &[u8] = b"settings";

/// Keys that come from a number, in place of random ones.
fn keys(number: u64) -> Keys {
    let mut entropy = Zeroizing::new([0; 128]);
    ChaCha20Rng::seed_from_u64(number).fill_bytes(&mut *entropy);
    Keys::new(&entropy)
}

fn member(unit: u32, round: u64) -> CohortMember {
    CohortMember {
        unit: UnitIndex(unit),
        epoch: Epoch(1),
        worker: kit::worker(unit + 1),
        audit_key: kit::public_key(unit + 1),
        keys: keys(round * 100 + u64::from(unit)).announced(),
        signature: ByteArray::new([0; 64]),
    }
}

fn members(count: u32, round: u64) -> Vec<CohortMember> {
    (0..count).map(|unit| member(unit, round)).collect()
}

fn cohort_of(
    round: u64,
    threshold: u32,
    members: Vec<CohortMember>,
) -> Result<Cohort, CohortError> {
    let (run, spec) = (kit::run_id(), Digest::of(SPEC));
    Cohort::new(&run, &spec, Round(round), threshold, members)
}

fn cohort(count: u32, threshold: u32, round: u64) -> Cohort {
    cohort_of(round, threshold, members(count, round)).expect("a cohort")
}

/// Takes part as the worker of a unit.
fn join(
    cohort: Cohort,
    keys: Keys,
    lease: &LeaseRef,
    is_signed: impl Fn(&CohortMember, &[u8]) -> bool,
) -> Result<Part, CohortError> {
    let number = lease.unit.index.get() + 1;
    let own = (&kit::worker(number), &kit::public_key(number));
    Part::join(cohort, keys, lease, own, is_signed)
}

/// The parts of all workers, who have exchanged their shares.
fn parts(cohort: &Cohort, round: u64) -> Vec<Part> {
    let units = cohort.members().iter().map(|member| member.unit.get());
    let mut parts: Vec<Part> = units
        .map(|unit| {
            let keys = keys(round * 100 + u64::from(unit));
            let lease = kit::lease(kit::train(round, unit), 1);
            join(cohort.clone(), keys, &lease, |_, _| true).expect("it is in")
        })
        .collect();
    let sealed: Vec<Vec<ByteBuf>> = parts.iter().map(|part| part.share().unwrap()).collect();
    for (place, part) in parts.iter_mut().enumerate() {
        let mine: Vec<ByteBuf> = sealed.iter().map(|from| from[place].clone()).collect();
        part.take(&mine).expect("they open");
    }
    parts
}

fn units(units: impl IntoIterator<Item = u32>) -> Vec<UnitIndex> {
    units.into_iter().map(UnitIndex).collect()
}

fn revealed(parts: &mut [Part], survivors: &[UnitIndex]) -> BTreeMap<UnitIndex, Vec<Bytes32>> {
    let reveal = |part: &mut Part| Some((part.own_unit(), part.reveal(survivors).ok()?));
    parts.iter_mut().filter_map(reveal).collect()
}

fn values(unit: u32) -> Vec<f32> {
    (0..10)
        .map(|index| (index as f32 - 4.5) * 0.01 * (unit as f32 + 1.0))
        .collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// The mean of the survivors' contributions, through masks and shares.
fn summed(parts: &mut [Part], fixed: FixedPoint, survivors: &[UnitIndex]) -> Vec<u8> {
    let masked = |part: &Part| {
        let mut chunk = bytes(&values(part.own_unit().get()));
        part.masks(fixed).unwrap().mask(&mut chunk, 700).unwrap();
        chunk
    };
    let counting = parts
        .iter()
        .filter(|part| survivors.contains(&part.own_unit()));
    let chunks: Vec<Vec<u8>> = counting.map(masked).collect();
    let shares = revealed(parts, survivors);
    let cohort = parts[0].cohort().clone();
    let secrets = cohort
        .recover(survivors, &shares)
        .expect("true shares")
        .expect("enough");
    let unmasking = cohort.unmasking(survivors, &secrets).expect("they fit");
    let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
    unmask(&unmasking, &fixed, 700, &chunks).expect("they are of the cohort")
}

/// The mean without masks: each value on the grid, and a plain sum of whole numbers.
fn plain(fixed: FixedPoint, survivors: &[UnitIndex]) -> Vec<u8> {
    let mut sums = [0_i64; 10];
    for unit in survivors {
        let mut chunk = bytes(&values(unit.get()));
        fixed.encode(&mut chunk).unwrap();
        for (sum, word) in sums.iter_mut().zip(chunk.as_chunks::<4>().0) {
            *sum += i64::from(i32::from_le_bytes(*word));
        }
    }
    let count = survivors.len() as f64;
    let means = sums.map(|sum| (sum as f64 * fixed.step() / count) as f32);
    bytes(&means)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn tl_17_any_workers_may_be_gone_down_to_the_threshold_and_the_sum_is_that_of_the_others(
        count in 3..8_u32,
        more in 0..4_u32,
        gone in prop::collection::vec(0..8_u32, 0..5),
    ) {
        let threshold = (count / 2 + 1 + more).min(count);
        let mut survivors: Vec<u32> = (0..count).collect();
        for unit in gone {
            if survivors.len() > threshold as usize {
                survivors.retain(|survivor| *survivor != unit);
            }
        }
        let survivors = units(survivors);
        let fixed = FixedPoint::new(1.0, count);
        let mut parts = parts(&cohort(count, threshold, 3), 3);
        prop_assert_eq!(summed(&mut parts, fixed, &survivors), plain(fixed, &survivors));
    }
}

#[test]
fn tl_17_a_masked_contribution_is_not_the_plain_one_and_no_mask_is_left_out() {
    let fixed = FixedPoint::new(1.0, 4);
    let parts = parts(&cohort(4, 3, 0), 0);
    let mut plain = bytes(&values(1));
    let masks = parts[1].masks(fixed).unwrap();
    assert_eq!(format!("{masks:?}"), "Masks(4 streams)");
    let mut masked = plain.clone();
    masks.mask(&mut masked, 0).unwrap();
    fixed.encode(&mut plain).unwrap();
    let same = masked
        .chunks(4)
        .zip(plain.chunks(4))
        .filter(|(a, b)| a == b);
    assert_eq!(same.count(), 0);
    // Another position in the vector has other masks.
    let mut elsewhere = bytes(&values(1));
    masks.mask(&mut elsewhere, 10).unwrap();
    assert_ne!(masked, elsewhere);
}

#[test]
fn tl_17_fewer_shares_than_the_threshold_give_no_secret() {
    let cohort = cohort(5, 4, 0);
    let survivors = units(0..5);
    let mut parts = parts(&cohort, 0);
    let mut shares = revealed(&mut parts, &survivors);
    assert!(cohort.recover(&survivors, &shares).unwrap().is_some());
    shares.remove(&UnitIndex(0));
    assert!(cohort.recover(&survivors, &shares).unwrap().is_some());
    shares.remove(&UnitIndex(1));
    assert_eq!(cohort.recover(&survivors, &shares), Ok(None));
    // Workers without shares say so, and count for nothing.
    shares.insert(UnitIndex(1), vec![]);
    assert_eq!(cohort.recover(&survivors, &shares), Ok(None));
}

#[test]
fn tl_17_a_false_share_is_seen_by_the_commitment_and_names_whose_secret_it_spoils() {
    let cohort = cohort(4, 3, 0);
    let survivors = units([0, 1, 3]);
    let mut parts = parts(&cohort, 0);
    let mut shares = revealed(&mut parts, &survivors);
    shares.get_mut(&UnitIndex(1)).unwrap()[2].0[31] ^= 1;
    let refused = cohort.recover(&survivors, &shares);
    assert_eq!(refused, Err(CohortError::Secret(UnitIndex(2))));
}

#[test]
fn tl_17_up_to_two_false_shares_are_left_out_when_there_are_as_many_more() {
    let (cohort, survivors) = (cohort(6, 4, 0), units(0..6));
    let mut parts = parts(&cohort, 0);
    let shares = revealed(&mut parts, &survivors);
    let sound = cohort.recover(&survivors, &shares).expect("true shares");
    assert!(sound.is_some());
    for liars in [[0, 0], [1, 5], [4, 5], [0, 3]] {
        let mut shares = shares.clone();
        for liar in BTreeSet::from(liars) {
            shares.get_mut(&UnitIndex(liar)).unwrap()[2].0[liar as usize] ^= 1;
        }
        assert_eq!(
            cohort.recover(&survivors, &shares),
            Ok(sound.clone()),
            "{liars:?}"
        );
        // Without the two others, more may still come; with none to come it is over.
        for other in (0..6).filter(|other| !liars.contains(other)).take(1) {
            shares.remove(&UnitIndex(other));
        }
        let waits = liars[0] == liars[1];
        let got = cohort.recover(&survivors, &shares);
        assert_eq!(got, Ok(sound.clone().filter(|_| waits)), "{liars:?}");
    }
    let mut shares = shares;
    for liar in [0, 1, 2] {
        shares.get_mut(&UnitIndex(liar)).unwrap()[2].0[liar as usize] ^= 1;
    }
    let over = cohort.recover(&survivors, &shares);
    assert_eq!(over, Err(CohortError::Secret(UnitIndex(2))));
}

#[test]
fn tl_17_a_share_that_does_not_open_is_missing_and_names_who_sent_it() {
    let (cohort, survivors) = (cohort(4, 3, 0), units(0..4));
    let mut parts = parts(&cohort, 0);
    // The worker of unit 1 seals rubbish for that of unit 0.
    let mut sealed: Vec<ByteBuf> = parts
        .iter()
        .map(|part| part.share().unwrap()[0].clone())
        .collect();
    sealed[1] = ByteBuf::from(vec![5; 80]);
    assert_eq!(parts[0].take(&sealed), Ok(units([1])));
    let mut shares = revealed(&mut parts, &survivors);
    let row = &shares[&UnitIndex(0)];
    let missing = row.iter().map(|share| share.0 == [0; 32]);
    assert_eq!(missing.collect::<Vec<_>>(), [false, true, false, false]);
    assert!(cohort.recover(&survivors, &shares).unwrap().is_some());
    // It has a share of the other secrets, so only that of unit 1 waits for another worker.
    shares.remove(&UnitIndex(3));
    assert_eq!(cohort.recover(&survivors, &shares), Ok(None));
}

#[test]
fn tl_17_a_share_that_comes_later_is_taken_and_one_that_came_stays() {
    let cohort = cohort(4, 3, 0);
    let joined = |unit: u32| {
        let lease = kit::lease(kit::train(0, unit), 1);
        let part = join(cohort.clone(), keys(u64::from(unit)), &lease, |_, _| true);
        part.expect("it is in")
    };
    let all: Vec<Part> = (0..4).map(joined).collect();
    let sealed: Vec<_> = all
        .iter()
        .map(|part| part.share().expect("sound"))
        .collect();
    let mine: Vec<ByteBuf> = sealed.iter().map(|from| from[0].clone()).collect();
    let mut part = joined(0);
    let everybody = units(0..4);
    let only = |places: &[usize]| -> Vec<ByteBuf> {
        let of = |(at, share): (usize, &ByteBuf)| match places.contains(&at) {
            true => share.clone(),
            false => ByteBuf::new(),
        };
        mine.iter().enumerate().map(of).collect()
    };
    assert_eq!(part.take(&only(&[])), Ok(vec![]));
    assert!(part.waits_for(&everybody) && !part.waits_for(&units([0])));
    assert_eq!(part.take(&only(&[1])), Ok(vec![]));
    assert!(part.waits_for(&units([2])) && !part.waits_for(&units([0, 1])));
    assert_eq!(part.take(&only(&[2, 3])), Ok(vec![]));
    assert!(!part.waits_for(&everybody));
    let mut whole = joined(0);
    assert_eq!(whole.take(&mine), Ok(vec![]));
    assert_eq!(part.reveal(&everybody), whole.reveal(&everybody));
}

#[test]
fn tl_17_a_worker_reveals_for_one_set_of_a_round_in_whatever_cohorts() {
    let mut disclosures = Disclosures::default();
    assert_eq!(disclosures.note(Round(3), &units(0..4)), Ok(()));
    // The round is opened again: the same set tells nothing new, another one does.
    assert_eq!(disclosures.note(Round(3), &units(0..4)), Ok(()));
    let refused = disclosures.note(Round(3), &units(0..3));
    assert_eq!(refused, Err(CohortError::AnotherSum(Round(3))));
    assert_eq!(disclosures.note(Round(4), &units(0..3)), Ok(()));
}

#[test]
fn tl_17_the_place_in_a_cohort_is_the_workers_own() {
    let lease = kit::lease(kit::train(0, 1), 1);
    for (worker, audit_key, fits) in [(2, 2, true), (3, 2, false), (2, 3, false)] {
        let own = (&kit::worker(worker), &kit::public_key(audit_key));
        let part = Part::join(cohort(4, 3, 0), keys(1), &lease, own, |_, _| true);
        assert_eq!(part.is_ok(), fits, "{worker} {audit_key}");
    }
}

#[test]
fn tl_17_nobody_gets_the_shares_of_both_secrets_of_a_worker() {
    let mut parts = parts(&cohort(5, 3, 0), 0);
    let first = parts[0].reveal(&units(0..5)).expect("all count");
    assert_eq!(
        parts[0].reveal(&units(0..5)).as_ref(),
        Ok(&first),
        "asked again"
    );
    assert_eq!(parts[0].reveal(&units(0..4)), Err(CohortError::BothSecrets));
    // A coordinator that tells half of the workers that the last one is gone, and the other half
    // that it is not, gets fewer shares of each secret than it needs.
    let shares = revealed(&mut parts, &units(0..4));
    assert!(!shares.contains_key(&UnitIndex(0)) && !shares.contains_key(&UnitIndex(4)));
    let mut parts = self::parts(&cohort(5, 3, 0), 0);
    let there = parts[..2]
        .iter_mut()
        .filter_map(|part| part.reveal(&units(0..5)).ok())
        .count();
    let gone = parts
        .iter_mut()
        .filter_map(|part| part.reveal(&units(0..4)).ok())
        .count();
    assert!(
        there < 3 && gone < 3,
        "{there} and {gone} of the 3 that are needed"
    );
}

#[test]
fn tl_17_a_worker_reveals_nothing_for_a_sum_without_itself_or_of_too_few() {
    let mut parts = parts(&cohort(5, 4, 0), 0);
    let refused = |part: &mut Part, named: Vec<UnitIndex>| {
        matches!(part.reveal(&named), Err(CohortError::Survivors(_)))
    };
    assert!(refused(&mut parts[0], units(1..5)), "without itself");
    assert!(refused(&mut parts[0], units(0..3)), "too few");
    assert!(
        refused(&mut parts[0], units([0, 1, 2, 2])),
        "one of them twice"
    );
    assert!(refused(&mut parts[0], units([0, 1, 2, 9])), "a stranger");
    // A refused question is not remembered.
    assert!(parts[0].reveal(&units(0..4)).is_ok());
}

#[test]
fn tl_17_keys_that_are_not_signed_or_not_its_own_are_refused() {
    let cohort = cohort(3, 3, 0);
    let lease = kit::lease(kit::train(0, 1), 1);
    let signed = |member: &CohortMember, body: &[u8]| {
        // What is checked is the statement about these keys, this run and this lease.
        assert_eq!(body, cohort.statement(member).encode());
        member.unit != UnitIndex(2)
    };
    let refused = join(cohort.clone(), keys(1), &lease, signed).unwrap_err();
    assert_eq!(refused, CohortError::Signature(UnitIndex(2)));
    // The keys of another round, or the lease of another worker.
    let not_in = join(cohort.clone(), keys(101), &lease, |_, _| true).unwrap_err();
    assert_eq!(not_in, CohortError::NotIn(lease));
    assert_eq!(not_in.code(), Code::CohortOver);
    let other = kit::lease(kit::train(0, 1), 2);
    assert!(join(cohort, keys(1), &other, |_, _| true).is_err());
}

#[test]
fn tl_17_shares_of_another_cohort_or_for_another_worker_do_not_open() {
    let mut here = parts(&cohort(4, 3, 0), 0);
    let sealed: Vec<Vec<ByteBuf>> = here.iter().map(|part| part.share().unwrap()).collect();
    let mine =
        |place: usize| -> Vec<ByteBuf> { sealed.iter().map(|from| from[place].clone()).collect() };
    assert_eq!(here[0].take(&mine(0)), Ok(vec![]));
    assert_eq!(here[0].take(&mine(1)), Ok(units([2, 3])));
    let mut swapped = mine(0);
    swapped.swap(2, 3);
    assert_eq!(here[0].take(&swapped), Ok(units([2, 3])));
    let mut altered = mine(0);
    altered[3][5] ^= 1;
    assert_eq!(here[0].take(&altered), Ok(units([3])));
    let (got, expected) = (3, 4);
    assert_eq!(
        here[0].take(&mine(0)[1..]),
        Err(CohortError::Count { got, expected })
    );
    // The same workers in the next round, and with one other key in this one.
    let mut next = parts(&cohort(4, 3, 1), 1);
    assert_eq!(next[0].take(&mine(0)), Ok(units(1..4)));
    let mut changed = members(4, 0);
    changed[3].keys = keys(999).announced();
    let changed = cohort_of(0, 3, changed).unwrap();
    let lease = kit::lease(kit::train(0, 0), 1);
    let mut part = join(changed, keys(0), &lease, |_, _| true).unwrap();
    assert_eq!(part.take(&mine(0)), Ok(units(1..4)));
}

#[test]
fn tl_17_workers_that_are_no_cohort_are_refused() {
    let refused = |threshold, members| cohort_of(0, threshold, members).is_err();
    assert!(!refused(3, members(4, 0)));
    assert!(refused(2, members(4, 0)), "two halves would each be enough");
    assert!(refused(5, members(4, 0)), "more than there are");
    assert!(refused(20, members(33, 0)), "too many");
    let mut twice = members(4, 0);
    twice[1].worker = twice[0].worker.clone();
    assert!(refused(3, twice));
    let mut same_key = members(4, 0);
    same_key[1].keys.masking = same_key[0].keys.masking;
    assert!(refused(3, same_key));
    let mut same_signer = members(4, 0);
    same_signer[1].audit_key = same_signer[0].audit_key.clone();
    assert!(refused(3, same_signer));
    let low: [fn(&mut MaskKeys); 2] = [
        |keys| keys.sealing = Bytes32([0; 32]),
        |keys| keys.masking = Bytes32([0; 32]),
    ];
    for change in low {
        let mut of_low_order = members(4, 0);
        change(&mut of_low_order[1].keys);
        assert!(refused(3, of_low_order));
    }
    let mut disordered = members(4, 0);
    disordered.swap(0, 1);
    assert!(refused(3, disordered));
}

#[test]
fn tl_17_everything_that_is_agreed_is_in_the_digest_of_the_cohort() {
    let digest = |threshold, round, change: &dyn Fn(&mut CohortMember)| {
        let mut members = members(5, 0);
        change(&mut members[2]);
        cohort_of(round, threshold, members).unwrap().digest()
    };
    let plain = digest(3, 0, &|_| {});
    let changed = [
        digest(4, 0, &|_| {}),
        digest(3, 1, &|_| {}),
        digest(3, 0, &|member| member.epoch = Epoch(2)),
        digest(3, 0, &|member| member.worker = kit::worker(77)),
        digest(3, 0, &|member| member.audit_key = kit::public_key(77)),
        digest(3, 0, &|member| {
            member.keys.commitment = Digest::of(b"another")
        }),
    ];
    assert!(!changed.contains(&plain));
    let distinct: BTreeSet<Digest> = changed.into_iter().collect();
    assert_eq!(distinct.len(), changed.len());
}

#[test]
fn tl_17_secrets_that_are_not_the_workers_are_not_taken() {
    let cohort = cohort(4, 3, 0);
    let survivors = units([0, 1, 3]);
    let mut parts = parts(&cohort, 0);
    let shares = revealed(&mut parts, &survivors);
    let secrets = cohort.recover(&survivors, &shares).unwrap().unwrap();
    let unmasking = cohort.unmasking(&survivors, &secrets).unwrap();
    let count = |keys: &[UnitKey]| keys.len();
    assert_eq!(
        (
            count(&unmasking.seeds),
            count(&unmasking.masking),
            count(&unmasking.gone)
        ),
        (3, 3, 1)
    );
    // The seed of the worker that is gone was never revealed, and its key is.
    assert_eq!(
        public_of(&unmasking.gone[0].key.0),
        cohort.members()[2].keys.masking
    );
    for place in 0..4 {
        let mut wrong = secrets.clone();
        wrong[place].key.0[0] ^= 8;
        let unit = UnitIndex(place as u32);
        assert_eq!(
            cohort.unmasking(&survivors, &wrong),
            Err(CohortError::Secret(unit))
        );
    }
    assert!(cohort.unmasking(&survivors, &secrets[1..]).is_err());
    assert!(
        cohort.unmasking(&units(0..4), &secrets).is_err(),
        "one of them is gone"
    );
}
