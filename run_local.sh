#!/usr/bin/env bash
# The one command: ./run_local.sh runs the main job on this machine, ./run_local.sh test runs what CI runs.
# It needs Python 3.11 or newer and nothing else: it makes its own environment, .venv, and keeps it up to date.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${MILLRACE_VENV:-$root/.venv}
stamp=$venv/.millrace  # what the environment was made from; missing while it is being made
ours=$venv/.made-by-run_local
log=$root/.cache/setup.log

usage() {
    cat <<'END'
./run_local.sh [OPTION...]        run the main job here, with sample traffic, until Ctrl-C
./run_local.sh test [ARGUMENT...] lint, types and every test, as CI does; the arguments go to pytest
./run_local.sh --help             this, and every option of the main job

The options most used:
  --for SECONDS   end by itself after that time
  --data DIR      where the archive, the broker's messages and the write keys are kept (default: data/)
  --port N        the collector's (default: 8080)
  --rate N        sample events per second
  --no-demo       send no sample traffic
  --prism_location FILE   use this Prism, Beam's runner; without it, Millrace finds or makes one

Variables: PYTHON (which Python makes the environment), MILLRACE_VENV (where it is kept; default: .venv),
PUBSUB_EMULATOR_HOST (use that Pub/Sub instead of the embedded one), PRISM_LOCATION.
END
}

say() { printf 'run_local: %s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 2
}

# What the environment must be made from: another setup.py, place or Python makes another key. No process but one.
key() { { cat "$root/setup.py" "$venv/pyvenv.cfg" && printf '%s' "$root"; } 2>/dev/null | cksum; }

is_ready() { # is_ready EXTRA; "test" holds all that "local" does
    local made_key made_extra
    [[ -x $venv/bin/python && -r $stamp ]] || return 1
    { IFS= read -r made_key && IFS= read -r made_extra; } <"$stamp" || return 1
    [[ $made_extra == test || $made_extra == "$1" ]] && [[ $made_key == "$(key)" ]] && is_asked_python
}

version_of() { "$1" -c 'import sys; print(".".join(map(str, sys.version_info[:2])))' 2>/dev/null; }

is_asked_python() { [[ -z ${PYTHON:-} ]] || [[ $(version_of "$PYTHON") == $(version_of "$venv/bin/python") ]]; }

# Each candidate is asked, not only found: a pyenv shim, or a stub that opens a shop, is not a Python.
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or newer that runs"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.13 python3 python; do
        is_new_enough "$candidate" && echo "$candidate" && return
    done
    fail "no Python 3.11 or newer on the PATH; install one (Debian: apt-get install python3 python3-venv), or say PYTHON=/path/to/python"
}

make_venv() {
    local python
    python=$(find_python)
    say "making $venv with $("$python" -VV | head -n 1)"
    mkdir -p "$venv"
    touch "$ours"
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv "$venv"
    elif "$python" -c 'import venv, pip' 2>/dev/null; then # Debian splits ensurepip off, and may have pip all the same
        "$python" -m venv --without-pip "$venv"
        "$python" -m pip --python "$venv/bin/python" install --quiet pip
    else
        fail "$python can make no virtual environment; install venv for it (Debian: apt-get install python3-venv)"
    fi
}

# Reads pip's lines, keeps them in the log, and passes on a sign of life every few seconds.
narrate() {
    local line='' last=$SECONDS status
    while true; do
        status=0
        IFS= read -r -t 10 line || status=$?
        if ((status > 128)); then # silence for 10 s
            say "still installing (${SECONDS} s so far)"
            last=$SECONDS
        elif ((status > 0)); then # the end
            break
        else
            printf '%s\n' "$line" >>"$log"
            if ((SECONDS - last >= 3)) || [[ $line == 'Installing collected'* ]]; then
                line=${line#"${line%%[![:space:]]*}"}
                say "${line:0:100}"
                last=$SECONDS
            fi
        fi
    done
    cat >>"$log" # an old bash ends the loop at the first silence
}

install() { # install EXTRA
    say "installing Millrace and what it needs (a few minutes, once; in full: $log)"
    : >"$log"
    # A lax editable install: strict mode would break \`python -m pipelines.events\` in the checkout.
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off -e "${root}[$1]" 2>&1 | narrate; then
        tail -n 20 "$log" >&2
        fail "pip could not install it: see above; run this again to try again"
    fi
}

set_up() { # set_up EXTRA
    mkdir -p "$root/.cache"
    exec 9>"$root/.cache/setup.lock"
    if command -v flock >/dev/null && ! flock --nonblock 9; then
        say "another run is setting up: waiting for it"
        flock 9
    fi
    if ! is_ready "$1"; then
        # Without its stamp, one of ours was interrupted half-way: only a new one is sure. Somebody's own is kept.
        if [[ -e $ours && ! -e $stamp ]] || { [[ -x $venv/bin/python ]] && ! is_asked_python; }; then
            say "removing $venv: it is half-made, or of another Python than PYTHON"
            rm -rf "$venv"
        fi
        rm -f "$stamp"
        if ! [[ -x $venv/bin/python ]]; then make_venv; fi
        is_new_enough "$venv/bin/python" || fail "$venv is of a Python older than 3.11: move it away"
        install "$1"
        printf '%s\n%s\n' "$(key)" "$1" >"$stamp.new"
        mv "$stamp.new" "$stamp"
        say "ready after ${SECONDS} s"
    fi
    exec 9>&- # or the job would hold the lock
}

case ${1:-} in
    -h | --help)
        usage
        if is_ready local; then
            echo
            exec "$venv/bin/python" -m millrace.cli local --help
        fi
        ;;
    test)
        shift
        is_ready test || set_up test
        cd "$root"
        "$root/.ci/check" "$venv/bin/python"
        exec "$venv/bin/python" -m pytest "$@"
        ;;
    *)
        is_ready local || set_up local
        exec "$venv/bin/python" -m millrace.cli local "$@"
        ;;
esac
