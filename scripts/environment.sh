#!/bin/sh
# Find a Python that glmkit can use, then let environment.py make or refresh the virtual environment.
# usage: environment.sh VENV [EXTRA ...]     PYTHON=/path/to/python chooses the interpreter.
set -eu
here=$(dirname "$0")
venv=$1

# A candidate must run (pyenv leaves shims that do not), be of a supported version, and be able to make environments.
usable() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1 &&
        "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    candidates=$PYTHON
elif [ -x "$venv/bin/python" ] && usable "$venv/bin/python"; then
    exec "$venv/bin/python" "$here/environment.py" "$@"
else
    # The newest is not the best: a wheel of torch may be at hand only for the system's own version.
    candidates="python3 python3.11 python3.12 python3.13 python3.14 /usr/bin/python3"
fi

for python in $candidates; do
    if usable "$python"; then
        exec "$python" "$here/environment.py" "$@"
    fi
done

for python in $candidates; do
    version=$("$python" -c 'import sys; print("Python %d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
    case $version in
        "Python 3.11."* | "Python 3.12."* | "Python 3.13."* | "Python 3.14."*) version="$version without the venv module" ;;
    esac
    found="${found:+$found, }$version ($python)"
done
echo "glmkit needs Python 3.11 to 3.14 with venv; found ${found:-none}." \
    "Install one, or name it: make PYTHON=/path/to/python3" >&2
exit 2
