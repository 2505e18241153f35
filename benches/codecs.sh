#!/bin/sh
# Held-out loss of the demo's model with each codec of uploads, over three seeds, in one process.
#
#   benches/codecs.sh [key=value ...]        such as corpus=PATH preset=tiny rounds=4
#
# Prints one line for each run: codec, error feedback, seed, and the last held-out loss in nats a
# token. The settings are the demo's; settings on the command line replace them.
set -eu
cd "$(dirname "$0")/.."
cargo build --quiet --release -p torch --example diloco
for seed in 1 2 3; do
    for arm in "bf16 off" "e3m0 off" "e3m0 on"; do
        codec=${arm% *} feedback=${arm#* }
        loss=$(target/release/examples/diloco preset=demo precision=fp32 rule=average rounds=8 \
            steps=60 rate=4e-3 "$@" seed="$seed" upload="$codec" feedback="$feedback" |
            sed -n 's/^round .*held-out \([0-9.]*\) nats.*/\1/p' | tail -n 1)
        echo "$codec feedback=$feedback seed=$seed $loss"
    done
done
