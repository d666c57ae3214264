#!/bin/sh
# What containers are to the kernel, without an engine for them: a producer and two consumers, each in a PID namespace
# of its own with a /proc of its own, over one tmpfs. The first consumer is killed while it holds a record; the second
# gets that record again, and all the others once.
#
#   PYTHON=.venv/bin/python examples/containers/two-namespaces.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}

if [ "${1-}" != inside ]; then
    unshare --user --map-root-user --mount --pid --fork --mount-proc true 2>/dev/null || {
        echo "this machine lets nobody make namespaces (sysctl kernel.unprivileged_userns_clone, or a seccomp profile)" >&2
        exit 77
    }
    folder=$(mktemp -d)
    trap 'rmdir "$folder"' EXIT
    unshare --user --map-root-user --mount "$0" inside "$folder"
    exit
fi

folder=$2
mount -t tmpfs -o size=64m,mode=700 tmpfs "$folder" # compose: a volume of type tmpfs
mkdir -m 700 "$folder/topics"
mkfifo "$folder/said"
export COMUX_DIR="$folder/topics"
trap 'kill -KILL $(jobs -p) 2>/dev/null || :; wait; umount "$folder"' EXIT

container() { # what `docker run` does for these
    exec unshare --pid --fork --kill-child --mount-proc "$@"
}

(container "$python" "$here/producer.py" 2000 >"$folder/said") &
producer=$!
read -r line <"$folder/said" && echo "$line"

(container "$python" "$here/consumer.py" --hold 5 >"$folder/said") &
first=$!
read -r line <"$folder/said" && echo "$line"
kill -KILL "$first" # docker kill
echo "killed"

(container "$python" "$here/consumer.py")
wait "$producer"
"$python" -P -m comux topics info work --format json | grep '"next"'
