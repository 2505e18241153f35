#!/bin/bash
# Checks that need a CUDA device: that weights on the card have the same bits as weights in memory,
# how long a sync holds the training thread, and the sync of a whole job.
#
#   benches/gpu/card.sh [FOLDER]
#
# If the machine has no cargo, FOLDER holds programs from another machine: diloctl, diloco-store,
# diloco-coordinator, diloco-audit, diloco-worker, nats-server, the example `card` of the crate
# `torch` and its test program `card` as `card-test`. python3 must have a CUDA build of libtorch
# 2.11.0. DEVICE, SIZES, PRESET, STEPS, ROUNDS and SET (further flags of `diloctl run new`)
# change what is measured; LOGS names a file for the processes' logs.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD device=${DEVICE:-cuda:0} steps=${STEPS:-200} rounds=${ROUNDS:-8}
torch='import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))'
export LD_LIBRARY_PATH=${TORCH_LIB:-$(python3 -c "$torch")}
if [ $# -gt 0 ]; then
    programs=$(realpath "$1")
else
    cargo build --release --bins -p diloctl -p diloco-store -p diloco-coordinator -p diloco-audit -p diloco-worker
    cargo build --release -p torch --example card
    programs=$root/target/release
    cp "$programs/examples/card" "$root/.deps/nats/nats-server" "$programs/"
    built=$(cargo test --release -p torch --test card --no-run --message-format=json)
    cp "$(sed -n 's/.*"executable":"\([^"]*card-[^"]*\)".*/\1/p' <<<"$built")" "$programs/card-test"
fi
nvidia-smi -L || true
"$programs/card-test" --nocapture
# shellcheck disable=SC2086
"$programs/card" "$device" ${SIZES:-110m 1b}

# Units of some seconds. Shorter ones would not do: moments are written while the next unit trains.
scratch=$(mktemp -d)
export DILOCO_DOMAIN=$scratch/domain NATS_SERVER_BIN=$programs/nats-server
diloctl() { "$programs/diloctl" "$@" >"$scratch/last.log" 2>&1 || { cat "$scratch/last.log"; exit 1; }; }
keep() { [ -z "${LOGS:-}" ] || (cd "$scratch" && find . -name '*.log' | tar czf "$LOGS" -T -); }
trap '"$programs/diloctl" down >/dev/null 2>&1 || true; keep; rm -rf "$scratch"' EXIT
(find "$root/services" -name '*.rs' -exec cat {} + || true) 2>/dev/null | head -c 1500000 >"$scratch/text" || true
diloctl auth init --run demo
diloctl up --run demo --device "$device"
diloctl data import --text "$scratch/text" --limit 2MiB
# shellcheck disable=SC2086
diloctl run new demo --model "${PRESET:-100m}" --rounds "$rounds" --units 2 --steps "$steps" \
    --set schedule.evaluation_every=0 --set schedule.snapshot_every=1000000 --set policy.workers_min=2 ${SET:-}
diloctl run wait demo
python3 - "$DILOCO_DOMAIN" <<'END'
import datetime, pathlib, re, statistics, sys

MARKS = {
    " inner steps done ": "done", " contribution uploaded ": "uploaded", " contribution screened ": "screened",
    " merged ": "merged", " lease verified, fetching ": "leased", " base weights loaded ": "loaded",
}
last = {}
for log in pathlib.Path(sys.argv[1]).rglob("*.log"):
    for line in log.read_text(errors="replace").splitlines():
        mark = next((mark for text, mark in MARKS.items() if text in line), None)
        found = re.search(r"\bround=(\d+)", line) or re.search(r"\blease=(\d+)/", line)
        if mark and found:
            at = datetime.datetime.fromisoformat(line.split()[0].replace("Z", "+00:00")).timestamp()
            key = int(found[1]), mark
            last[key] = max(at, last.get(key, at))
stages = [("done", 0), ("uploaded", 0), ("screened", 0), ("merged", 0), ("leased", 1), ("loaded", 1)]
names = ["encode + upload", "screen", "merge + publish", "lease", "download + decode"]
rows = []
# The first rounds warm caches, page-locked memory among them.
for round in range(2, max(round for round, _ in last)):
    times = [last.get((round + later, mark)) for mark, later in stages]
    if None not in times:
        rows.append([b - a for a, b in zip(times, times[1:])])
        print(f"round {round}: {sum(rows[-1]):.3f} s =", " + ".join(f"{stage:.3f}" for stage in rows[-1]))
print(f"last inner step to next base, median of {len(rows)} rounds:")
print(f"  {statistics.median(map(sum, rows)):.3f} s")
for at, name in enumerate(names):
    print(f"  {statistics.median(row[at] for row in rows):.3f} s {name}")
END
