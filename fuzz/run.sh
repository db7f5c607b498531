#!/bin/sh
# Runs fuzz targets: fuzz/run.sh SECONDS [TARGET...]. Every target gets SECONDS; one line each; fails on any finding.
# A finding stays in fuzz/artifacts/TARGET/; repeat it with: cargo fuzz run TARGET FILE
set -u

seconds=${1:?usage: fuzz/run.sh SECONDS [TARGET...]}
shift
cd "$(dirname "$0")" || exit 2
PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
# libFuzzer's instrumentation is asked for with -Z flags, which a stable compiler takes only so.
export RUSTC_BOOTSTRAP=1
# What is fuzzed has no unsafe code, so a panic, a hang or a leak is all that can be found, and that needs no address
# sanitizer. SANITIZER=address runs with one, several times slower.
sanitizer=${SANITIZER:-none}

if ! command -v c++ >/dev/null; then
    echo 'fuzz: libFuzzer needs a C++ compiler: sudo apt-get install g++' >&2
    exit 2
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo 'fuzz: installing cargo-fuzz (once)'
    cargo install --locked --quiet cargo-fuzz || exit 2
fi
if [ $# -eq 0 ]; then
    # The names of all [[bin]] in Cargo.toml.
    set -- $(sed -n '/^\[\[bin\]\]/,/^name/s/^name = "\(.*\)"/\1/p' Cargo.toml)
fi

# The longest input worth trying, bytes: what the format's own cap is near to, where that is small enough to search.
max_len() {
    case $1 in
        stun | demux_ip) echo 1600 ;;
        broker_pre_auth) echo 2048 ;;
        broker_from | survey) echo 8192 ;;
        certificate) echo 4200 ;;
        relay_token) echo 256 ;;
        invite) echo 1024 ;;
        *) echo 4096 ;;
    esac
}

echo 'fuzz: building the targets'
cargo fuzz build --sanitizer "$sanitizer" >build.log 2>&1 || { cat build.log >&2; exit 2; }
rm -f build.log

mkdir -p corpus/overlay_toml && cp ../overlay.toml.example corpus/overlay_toml/

failed=0
for target in "$@"; do
    mkdir -p "corpus/$target" "seeds/$target" artifacts
    log=artifacts/$target.log
    if cargo fuzz run --sanitizer "$sanitizer" "$target" "corpus/$target" "seeds/$target" -- \
        -max_total_time="$seconds" -max_len="$(max_len "$target")" -timeout=5 -rss_limit_mb=1024 \
        -print_final_stats=1 >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        printf 'ok    %-16s %s executions in %s s\n' "$target" "${runs:-?}" "$seconds"
        rm -f "$log"
    else
        failed=1
        printf 'FOUND %-16s see fuzz/%s\n' "$target" "$log"
        tail -n 30 "$log"
    fi
done
exit $failed
