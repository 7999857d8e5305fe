#!/usr/bin/env bash
# Sets up the project in .venv, and on request runs it, tests it, or links the plugin into threestudio.
# Whatever is done already is skipped. No compiler and no root rights are needed.
set -euo pipefail

usage() {
    cat <<'TEXT'
bash install.sh                     set up .venv
bash install.sh --run [WORDS...]    set up, then train and export: launch.py --config configs/dreamfusion-lmc.yaml --train WORDS
bash install.sh --test [WORDS...]   set up with the test tools, then run the tests: pytest WORDS
bash install.sh --threestudio DIR   link the plugin into the custom/ folder of a threestudio checkout

Variables: PYTHON=python3.12      the interpreter to build .venv with (3.10 to 3.13)
           TORCH_SPEC=torch==2.9  another torch than the one chosen for this machine
TEXT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

# Prints the path and the version of an interpreter that will do.
find_python() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11 python3.10)
    if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c '
import sys, venv, ensurepip
if not (3, 10) <= sys.version_info < (3, 14): sys.exit(1)  # for 3.14 xatlas has no wheel yet
print(sys._base_executable, sys.version.split()[0], sep="\n")' 2>/dev/null; then return; fi
    done
    fail "no Python 3.10 to 3.13 with the venv module (tried: ${candidates[*]}); install one (Debian: apt-get install python3 python3-venv) or name it: PYTHON=/path/to/python bash install.sh"
}

has_gpu() {
    command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU
}

# set_up FILE: .venv holds what that requirements file asks for. A stamp keeps the hash of all that decides the result.
set_up() {
    local found python version torch key verbosity files=("$1") stamp=$venv/.installed-$1
    if has_gpu; then
        torch=${TORCH_SPEC:-torch}
        files+=(requirements-cuda.txt)
    else
        torch=${TORCH_SPEC:-torch==2.13.0} # the version whose plain name is a CPU build where CPU wheels are indexed
    fi
    found=$(find_python)
    { read -r python && read -r version; } <<<"$found"
    key=$({ cd "$root" && cat requirements*.txt && echo "$version $torch ${files[*]} $root"; } | sha256sum | cut -d' ' -f1)
    if [[ -x $venv/bin/python && -e $stamp && $(<"$stamp") == "$key" ]]; then return; fi

    echo "Setting up $venv; the first time takes a few minutes." >&2
    if [[ $("$venv/bin/python" -c 'import sys, pip; print(sys.version.split()[0])' 2>/dev/null) != "$version" ]]; then
        "$python" -m venv --clear "$venv"
    fi
    verbosity=$([[ -t 1 ]] && echo --progress-bar=on || echo --quiet)
    (cd "$root" && "$venv/bin/python" -m pip install "$verbosity" --disable-pip-version-check "$torch" "${files[@]/#/-r}") ||
        fail "pip could not install the packages (see above); check the network and run the same command again"
    echo "$key" >"$stamp"
}

# The Khronos glTF validator, which the tests run on every exported file.
set_up_validator() {
    local folder=$root/tests/gltf
    command -v npm >/dev/null || fail "the tests need node and npm for the glTF validator (Debian: apt-get install nodejs npm)"
    cmp -s "$folder/package-lock.json" "$folder/node_modules/.installed" && return
    (cd "$folder" && npm ci --silent --no-audit --no-fund) || fail "npm could not install the glTF validator of tests/gltf"
    cp "$folder/package-lock.json" "$folder/node_modules/.installed"
}

link_into_threestudio() {
    local plugin=$root/custom/lmc_guidance link
    [[ -f $1/launch.py && -d $1/threestudio ]] || fail "$1 is not a checkout of threestudio: it has no launch.py and threestudio/"
    link=$(cd "$1" && pwd)/custom/lmc_guidance
    mkdir -p "$(dirname "$link")"
    if [[ -L $link && $(readlink "$link") == "$plugin" ]]; then
        echo "$link is linked already."
    elif [[ -e $link || -L $link ]]; then
        fail "$link exists and is not a link to this plugin; move it away first"
    else
        ln -s "$plugin" "$link"
        echo "Linked $link. Use it with system.guidance_type=lmc-guidance."
    fi
}

case ${1:-} in
"")
    set_up requirements.txt
    echo "Ready: bash install.sh --run system.prompt_processor.prompt=\"a red cube\""
    ;;
--run)
    shift
    set_up requirements.txt
    cd "$root"
    exec "$venv/bin/python" launch.py --config configs/dreamfusion-lmc.yaml --train "$@"
    ;;
--test)
    shift
    set_up requirements-dev.txt
    set_up_validator
    cd "$root"
    exec "$venv/bin/python" -m pytest "$@"
    ;;
--threestudio)
    [[ $# == 2 ]] || fail "write --threestudio DIR"
    link_into_threestudio "$2"
    ;;
-h | --help)
    usage
    ;;
*)
    usage >&2
    fail "unknown option $1"
    ;;
esac
