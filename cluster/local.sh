#!/usr/bin/env bash
# Two Ray clusters on this machine that share only an S3 server, as in production: one of several nodes for jobs, one
# of a single node for the student, which loads each new version by itself. All of it listens on loopback.
#
#   cluster/local.sh up                      start it; ends when the student answers
#   cluster/local.sh submit [TASK.toml] [table.key=value ...]
#                                            distil a task on it (default: jobs/configs/triage.toml)
#   cluster/local.sh status                  what runs, and what the student serves
#   cluster/local.sh down                    stop what `up` started, and nothing else
#
# Settings: WORKERS (2), NODE_CPUS (6, logical), GCS_PORT, DASHBOARD_PORT, STUDENT_GCS_PORT, STUDENT_DASHBOARD_PORT,
# JOB_SERVE_PORT, S3_PORT, SHARED_DIR; STUDENT_CONFIG (cluster/serve.student.yaml), RAYDISTILL_BIN (.venv/bin) and RAYDISTILL_STATE
# (.raydistill/cluster: ids, logs, token, the store's secret). The S3 server keeps its objects in memory: they end with it.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BIN=${RAYDISTILL_BIN:-$ROOT/.venv/bin}
STATE=${RAYDISTILL_STATE:-$ROOT/.raydistill/cluster}
WORKERS=${WORKERS:-2}
NODE_CPUS=${NODE_CPUS:-6}
GCS_PORT=${GCS_PORT:-6379}
DASHBOARD_PORT=${DASHBOARD_PORT:-8265}
STUDENT_GCS_PORT=${STUDENT_GCS_PORT:-6380}
STUDENT_DASHBOARD_PORT=${STUDENT_DASHBOARD_PORT:-8266}
STUDENT_CONFIG=${STUDENT_CONFIG:-$ROOT/cluster/serve.student.yaml}
S3_PORT=${S3_PORT:-9500}
JOB_SERVE_PORT=${JOB_SERVE_PORT:-8001} # the teacher's front, on the jobs' cluster
BUCKET=s3://raydistill # serve.student.yaml says so too
SHARED_DIR=${SHARED_DIR:-${RAYDISTILL_CACHE:-$HOME/.cache/raydistill}} # the nodes of one machine see it: the demo model lies there
SERVE_PORT=$(sed -n 's/^  port: *//p' "$STUDENT_CONFIG")
URL=http://127.0.0.1:$SERVE_PORT
DASHBOARD=http://127.0.0.1:$DASHBOARD_PORT
START_SECONDS=300
STOP_SECONDS=5 # a head with Serve on it does not end by itself within 20

fail() {
  echo "error: $*" >&2
  exit 1
}

# --- processes: each is a session of its own, known by its id, its start and the machine's boot -------------------

# Sets `words` to those of /proc/PID/stat after the name, which may hold blanks: state, ..., session (3), start (19).
read_stat() { # PID
  local line
  words=()
  { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
  read -r -a words <<<"${line##*) }"
}

start_of() { # PID
  local words
  read_stat "$1" && echo "${words[19]}"
}

boot_id() { cat /proc/sys/kernel/random/boot_id; }

launch() { # NAME COMMAND...
  local name=$1
  shift
  setsid "$@" >"$STATE/$name.log" 2>&1 </dev/null &
  echo "$! $(start_of "$!") $(boot_id)" >"$STATE/$name.pid"
}

# The ids of what is left of NAME: its session's processes. Nothing where the id belongs to somebody else by now.
members() { # NAME
  local pid start boot file words
  read -r pid start boot <"$STATE/$1.pid" || return 0
  [[ $boot == "$(boot_id)" ]] || return 0
  [[ ! -e /proc/$pid || $(start_of "$pid") == "$start" ]] || return 0
  for file in /proc/[0-9]*; do
    # Of a process that has ended but was not waited for (Z) there is nothing to stop.
    read_stat "${file#/proc/}" || continue
    if [[ ${words[3]} == "$pid" && ${words[0]} != Z ]]; then echo "${file#/proc/}"; fi
  done
}

stop() { # NAME
  local left pid deadline=$((SECONDS + STOP_SECONDS))
  [[ -e $STATE/$1.pid ]] || return 0
  left=$(members "$1")
  if [[ -n $left ]]; then
    # The first one ends its children in order; what is left after a while is ended by id.
    read -r pid _ <"$STATE/$1.pid"
    kill -TERM "$pid" 2>/dev/null || true
    while [[ -n $(members "$1") ]] && ((SECONDS < deadline)); do sleep 0.2; done
    for pid in $(members "$1"); do kill -KILL "$pid" 2>/dev/null || true; done
    echo "stopped $1"
  fi
  rm -f "$STATE/$1.pid"
}

# The names of what `up` started, those first that have to end first.
names() {
  local file name
  for name in worker- head student s3; do
    for file in "$STATE/$name"*.pid; do
      if [[ -e $file ]]; then basename "$file" .pid; fi
    done
  done
}

is_up() { [[ -n $(names) ]]; }

# --- waiting -------------------------------------------------------------------------------------------------------

# Of Ray's client server, which nobody uses here, cannot be switched off, and may not be that of the other head.
free_port() { "$BIN/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

get() { # URL: prints the answer; fails on anything but success
  "$BIN/python" - "$1" <<'PYTHON'
import os, sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"x-api-key": os.environ.get("RAYDISTILL_API_KEY", "")})
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    print(opener.open(request, timeout=10).read().decode())
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error}")
PYTHON
}

deploy_student() { # a dashboard that has just come up may cut a connection: then once or twice more
  local try
  for try in 1 2 3; do
    "$BIN/serve" deploy --address "http://127.0.0.1:$STUDENT_DASHBOARD_PORT" "$STUDENT_CONFIG" >"$STATE/deploy.log" 2>&1 && return
    ((try < 3)) && grep -q ConnectionError "$STATE/deploy.log" || return 1
    sleep 1
  done
}

student_fault() { # why Serve has given the student up; nothing where it may still come
  PYTHONPATH="$ROOT" "$BIN/python" "$ROOT/cluster/student.py" fault "http://127.0.0.1:$STUDENT_DASHBOARD_PORT" "$STATE/token"
}

wait_for() { # NAME WHAT COMMAND...: until the command succeeds, or NAME has ended, or Serve gives up, or time is over
  local name=$1 what=$2 fault='' deadline=$((SECONDS + START_SECONDS))
  shift 2
  until "$@" >/dev/null 2>&1; do
    [[ -n $(members "$name") ]] || fail "$what: $name ended. Its last lines ($STATE/$name.log):
$(tail -n 5 "$STATE/$name.log")"
    [[ $what != "the student" ]] || fault=$(student_fault)
    [[ -z $fault ]] || fail "$what: $fault"
    ((SECONDS < deadline)) || fail "$what: nothing after $START_SECONDS s. See $STATE/$name.log."
    sleep 1
  done
}

# --- commands ------------------------------------------------------------------------------------------------------

use_environment() {
  export PATH="$BIN:$PATH" PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
  export AWS_ENDPOINT_URL="http://127.0.0.1:$S3_PORT" AWS_DEFAULT_REGION=us-east-1
  # Of this cluster's own store, which takes any: nobody's real credentials get into it, and these can be searched for.
  unset AWS_SESSION_TOKEN AWS_PROFILE
  AWS_SECRET_ACCESS_KEY=$(<"$STATE/s3_secret")
  export AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY
  # Whoever can reach a Ray cluster can run code on it: other users of this machine need the token.
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$STATE/token"
  export PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 RAY_TRAIN_V2_ENABLED=1
  # As jobs/runtime.py does for a cluster of its own: replicas start one after the other, few idle workers stay, and
  # none is started beforehand.
  export RAY_worker_maximum_startup_concurrency="$NODE_CPUS" RAY_num_workers_soft_limit=2 RAY_prestart_worker_first_driver=0
  export NO_PROXY="127.0.0.1,localhost${NO_PROXY:+,$NO_PROXY}"
  export no_proxy="$NO_PROXY"
}

make_secret() { # NAME: a file that only its owner reads
  (umask 077 && "$BIN/python" -c 'import secrets; print(secrets.token_hex(32))' >"$STATE/$1")
}

check_start() {
  local program port variable
  for program in python ray serve moto_server; do
    [[ -x $BIN/$program ]] || fail "$BIN/$program is not there: run \`make setup\` first, or set RAYDISTILL_BIN."
  done
  PYTHONPATH="$ROOT" "$BIN/python" "$ROOT/cluster/student.py" check "$STUDENT_CONFIG"
  ! is_up || fail "it is up already ($(names | tr '\n' ' ')): \`$0 status\` shows it, \`$0 down\` ends it."
  for variable in GCS_PORT DASHBOARD_PORT STUDENT_GCS_PORT STUDENT_DASHBOARD_PORT S3_PORT SERVE_PORT JOB_SERVE_PORT; do
    port=${!variable}
    ! port_open "$port" || fail "port $port is in use: end what listens there$(
      [[ $variable == SERVE_PORT ]] || echo ", or set $variable to another one"
    )."
  done
}

launch_head() { # NAME GCS_PORT DASHBOARD_PORT TEMP_DIR ARGUMENTS...
  local name=$1 gcs_port=$2 dashboard_port=$3 temp_dir=$4
  shift 4
  launch "$name" "$BIN/ray" start --head --port="$gcs_port" --dashboard-host=127.0.0.1 \
    --dashboard-port="$dashboard_port" --ray-client-server-port="$(free_port)" --temp-dir="$temp_dir" "$@"
  wait_for "$name" "Ray's head ($name)" port_open "$gcs_port"
  wait_for "$name" "Ray's dashboard ($name)" port_open "$dashboard_port"
}

up() {
  local index node temp_dir
  check_start
  mkdir -p "$STATE"
  make_secret token
  make_secret s3_secret
  use_environment
  # Of their own and short: Ray's sockets lie in them, and the path of a socket has 107 bytes at most.
  mktemp -d "${TMPDIR:-/tmp}/rd.XXXXXX" >"$STATE/temp_dir"
  temp_dir=$(<"$STATE/temp_dir")
  trap 'echo "stopping again; the logs stay in $STATE" >&2; down' EXIT # whatever fails from here on
  cd "$ROOT"

  launch s3 "$BIN/moto_server" -H 127.0.0.1 -p "$S3_PORT"
  wait_for s3 "the S3 server" port_open "$S3_PORT"
  "$BIN/python" -c 'import boto3, sys; boto3.client("s3").create_bucket(Bucket=sys.argv[1])' "${BUCKET#s3://}"
  echo "S3 server: $AWS_ENDPOINT_URL, bucket $BUCKET"

  node=(--block --node-ip-address=127.0.0.1 --num-cpus="$NODE_CPUS" --object-store-memory=$((300 * 1024 * 1024))
    --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0)
  launch_head head "$GCS_PORT" "$DASHBOARD_PORT" "$temp_dir/jobs" "${node[@]}"
  launch_head student "$STUDENT_GCS_PORT" "$STUDENT_DASHBOARD_PORT" "$temp_dir/student" "${node[@]}"
  deploy_student || fail "the student was not deployed: $(tail -n 5 "$STATE/deploy.log")"
  # While its engine starts:
  for ((index = 1; index <= WORKERS; index++)); do
    launch "worker-$index" "$BIN/ray" start --address="127.0.0.1:$GCS_PORT" --temp-dir="$temp_dir/jobs" "${node[@]}"
    wait_for "worker-$index" "Ray's worker $index" grep -q "Ray runtime started" "$STATE/worker-$index.log"
  done
  echo "Ray for jobs: 127.0.0.1:$GCS_PORT, dashboard $DASHBOARD, $((WORKERS + 1)) nodes"
  wait_for student "the student" get "$URL/status" # which its replica answers; the front is up before that
  echo "student: $URL"
  trap - EXIT
}

down() {
  local name student
  trap - EXIT
  is_up || echo "nothing is up"
  # The jobs' nodes before their head, the store last; the student's cluster is another one.
  stop student &
  student=$!
  for name in $(names); do
    if [[ $name != student && $name != s3 ]]; then stop "$name"; fi
  done
  wait "$student"
  stop s3
  if [[ -f $STATE/temp_dir ]]; then
    name=$(<"$STATE/temp_dir")
    [[ $name != */rd.?????? ]] || rm -rf "$name"
    rm -f "$STATE/temp_dir" "$STATE/token" "$STATE/s3_secret"
  fi
}

status() {
  local name gone=0
  is_up || fail "nothing is up: \`$0 up\` starts it."
  for name in $(names); do
    if [[ -n $(members "$name") ]]; then
      echo "$name: runs, id $(cut -d' ' -f1 "$STATE/$name.pid")"
    else
      echo "$name: has ended, see $STATE/$name.log"
      gone=1
    fi
  done
  get "$URL/status" || {
    gone=1
    student_fault
  }
  return "$gone"
}

submit() {
  local task=$ROOT/jobs/configs/triage.toml
  is_up || fail "nothing is up: \`$0 up\` starts it."
  if (($#)) && [[ $1 != *=* ]]; then
    [[ -f $1 ]] || fail "$1 is not there: give a task file."
    task=$(realpath "$1")
    shift
  fi
  use_environment
  "$BIN/ray" job submit --address "$DASHBOARD" --working-dir "$ROOT" -- \
    python -m jobs.distill "$task" "task.storage=$BUCKET" "student.url=$URL" \
    "cluster.http_port=$JOB_SERVE_PORT" "cluster.shared_dir=$SHARED_DIR" "$@"
}

command=${1:-}
(($#)) && shift
case $command in
  up | down | status) (($# == 0)) || fail "$command takes no arguments." ;;
esac
case $command in
  up) up ;;
  down) down ;;
  status) status ;;
  submit) submit "$@" ;;
  *)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
