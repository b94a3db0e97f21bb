#!/bin/sh
# Builds the fuzz targets and runs each for a while; or, with the name of a target, that one alone; with files after the
# name, these inputs and nothing else.
#
#     fuzz/run.sh                                    all targets, FUZZ_SECONDS (30) each
#     fuzz/run.sh icmp                               one target
#     fuzz/run.sh icmp fuzz/artifacts/icmp/crash-1f  what it says of this input
#
# Stable Rust and no cargo-fuzz: what is built is what `cargo fuzz run --sanitizer none` builds. No address sanitizer is
# needed, as the code under test has no `unsafe`: a read out of bounds is a panic.
set -eu

here=$(dirname "$0")
cargo=$here/../integration/cargo.sh
seconds=${FUZZ_SECONDS:-30}

if ! command -v ${CXX:-c++} >/dev/null; then
    echo "fuzzing needs a C++ compiler, to build libFuzzer: apt-get install g++" >&2
    exit 1
fi

# The flags of cargo-fuzz, src/project.rs; those that Cargo has a setting for are in Cargo.toml. It is for --target that
# build scripts are compiled without them.
flags='--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-sanitizer-coverage-stack-depth
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0'
triple=$("$cargo" -vV | sed -n 's/^host: //p')
RUSTFLAGS=$(echo $flags) "$cargo" build --quiet --release --locked --manifest-path "$here/Cargo.toml" \
    --target "$triple" --target-dir "$here/target"

# Runs TARGET with libFuzzer's arguments. A slow input is a fault like any other, and so is one that needs much memory.
target() {
    name=$1
    shift
    mkdir -p "$here/artifacts/$name"
    "$here/target/$triple/release/$name" -timeout=10 -rss_limit_mb=1024 "-artifact_prefix=$here/artifacts/$name/" "$@"
}

# The last number that stands behind WORD in the log of TARGET.
figure() {
    sed -n "s/^.*$2 *\([0-9][0-9]*\).*/\1/p" "$here/logs/$1" | tail -n 1
}

# Runs TARGET for a while, and says in a line how it fared, and more if it failed.
fuzz() {
    log=$here/logs/$1
    mkdir -p "$here/logs" "$here/findings/$1"
    # New inputs go to the first directory; the second holds the seeds.
    if target "$1" "-max_total_time=$seconds" -print_final_stats=1 "$here/findings/$1" "$here/corpus/$1" >"$log" 2>&1
    then
        printf '%-13s ok      %9s executions, %4s inputs kept, %5s code edges seen\n' "$1" \
            "$(figure "$1" number_of_executed_units:)" "$(figure "$1" ' corp:')" "$(figure "$1" ' cov:')"
        return
    fi
    printf '%-13s FAILED  %9s executions\n' "$1" "$(figure "$1" number_of_executed_units:)"
    # What the rule says, or libFuzzer, without the backtrace.
    sed -n '/ panicked at /,/^stack backtrace:\|^note: \|^==/p; /^SUMMARY: /p' "$log" \
        | grep -Ev '^(stack|note|==)' | head -n 20 | cut -c -1000 | sed 's/^/    /'
    input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    if [ -n "$input" ]; then
        echo "    the input:    $input"
        echo "    it alone:     $0 $1 $input"
    fi
    echo "    all of it:    $log"
    return 1
}

if [ $# -gt 1 ]; then
    target "$@"
    exit
fi
failed=0
for name in ${1:-segmentation coalescing icmp lease store authority health wireguard names}; do
    fuzz "$name" || failed=1
done
exit $failed
