#!/bin/bash
# A Slurm cluster of its own on this machine, for tests: munged, slurmctld and some slurmd, all on loopback, without systemd
# and without anything outside of one folder. Root starts it, since slurmd starts jobs as their owners.
#
#   slurm-cluster.sh start FOLDER            ends when every node takes jobs
#   slurm-cluster.sh stop FOLDER             ends every process of it and removes the folder
#   slurm-cluster.sh kill-node FOLDER NODE   as a power cut: slurmd, its steps and all they started are gone
#   slurm-cluster.sh start-node FOLDER NODE  the node comes back
#   slurm-cluster.sh restart-controller FOLDER [cold]    cold: it forgets every job
#
# Clients need SLURM_CONF=FOLDER/slurm.conf, and munge(1) the socket FOLDER/munge/socket. Every folder above FOLDER has to let
# everybody pass. NODES (2), CPUS of each (4; more than there are is all right), PORT, the first of as many as there are nodes
# and one, and EXTRA, lines for slurm.conf, come from the environment.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
command=${1:?command} folder=$(realpath -m "${2:?folder}")
nodes=${NODES:-2} cpus=${CPUS:-4} port=${PORT:-17600}
export SLURM_CONF=$folder/slurm.conf

fail() {
  echo "slurm-cluster: $*" >&2
  exit 1
}

# When a process began, in ticks since the boot: with its number it is a name that nothing else ever has. A zombie has none:
# where process 1 reaps nobody, the dead keep their numbers.
born() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  read -r -a stat <<<"${stat##*) }"
  [[ ${stat[0]} == Z ]] || echo "${stat[19]}"
}

runs() {
  local pid began
  [[ -s $folder/run/$1 ]] && read -r pid began <"$folder/run/$1" && [[ -n $began && $(born "$pid") == "$began" ]]
}

# daemon NAME COMMAND...: in its own session, its working folder telling whose the processes are that it starts.
daemon() {
  local name=$1
  shift
  ! runs "$name" || return 0
  mkdir -p "$folder/spool/$name"
  (cd "$folder/spool/$name" && exec setsid "$@") </dev/null >>"$folder/log/$name" 2>&1 &
  echo "$! $(born $!)" >"$folder/run/$name"
}

# until_true SECONDS COMMAND...
until_true() {
  local tries=$(($1 * 20))
  shift
  until "$@" >/dev/null 2>&1; do
    ((tries-- > 0)) || return 1
    sleep 0.05
  done
}

gone() { ! runs "$1"; }

end() {
  local name=$1 signal=$2 pid
  if runs "$name"; then
    read -r pid _ <"$folder/run/$name"
    kill "-$signal" "$pid" || true
    until_true 10 gone "$name" || kill -KILL "$pid" || true
  fi
  rm -f "$folder/run/$name"
}

kill_with_children() {
  local child children
  children=$(cat "/proc/$1/task/"*/children 2>/dev/null) || true
  kill -KILL "$1" 2>/dev/null || true
  for child in $children; do kill_with_children "$child"; done
}

# Of a node: slurmstepd stays in the working folder of the slurmd that started it.
kill_steps() {
  local pid
  for pid in $(pgrep -x slurmstepd); do
    [[ $(readlink "/proc/$pid/cwd") != "$folder/spool/$1" ]] || kill_with_children "$pid"
  done
}

configuration() {
  local host node
  host=$(hostname -s)
  cat <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
SlurmUser=slurm
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/state/slurmctld.pid
SlurmdPidFile=$folder/spool/%n/slurmd.pid
SlurmdSpoolDir=$folder/spool/%n
SlurmdLogFile=$folder/log/%n
SlurmctldLogFile=$folder/log/slurmctld
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=2
SlurmdTimeout=5
KillWait=2
MinJobAge=300
MaxArraySize=1001
MaxJobCount=30000
${EXTRA:-}
CONF
  for node in $(seq "$nodes"); do
    echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + node)) CPUs=$cpus"
  done
  echo "PartitionName=batch Nodes=n[1-$nodes] Default=YES MaxTime=60 State=UP"
}

start_controller() { daemon slurmctld slurmctld -D -f "$SLURM_CONF" "$@"; }
start_node() { daemon "$1" slurmd -D -N "$1" -f "$SLURM_CONF"; }
# A node is listed once for each partition that it is in.
all_ready() {
  [[ $(sinfo --noheader --Node --states=idle,mixed,allocated --format='%N %T' | grep -v '\*' | sort -u | wc -l) == \
    $(grep -c ^NodeName= "$SLURM_CONF") ]]
}

case $command in
  start)
    [[ $EUID == 0 ]] || fail "slurmd starts jobs as their owners: root is needed"
    mkdir -p "$folder"/{run,log,munge,state,spool}
    chmod 755 "$folder" "$folder/munge"
    chown munge: "$folder/munge"
    chown slurm: "$folder/state"
    touch "$folder/log/slurmctld" && chown slurm: "$folder/log/slurmctld"
    (umask 077 && head -c 128 /dev/urandom >"$folder/munge/key")
    chown munge: "$folder/munge/key"
    configuration >"$SLURM_CONF"
    daemon munged setpriv --reuid=munge --regid=munge --clear-groups munged --foreground --key-file="$folder/munge/key" \
      --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" --seed-file="$folder/munge/seed" --log-file="$folder/munge/log"
    until_true 10 test -S "$folder/munge/socket" || fail "munged does not start: $(tail -n 3 "$folder/log/munged")"
    start_controller
    for node in $(seq "$nodes"); do start_node "n$node"; done
    until_true 30 all_ready || fail "the nodes do not come up: $(tail -n 5 "$folder/log/slurmctld")"
    ;;
  stop)
    for name in $(cd "$folder/run" && ls -- n[0-9]* 2>/dev/null); do
      end "$name" TERM
      kill_steps "$name"
    done
    end slurmctld TERM
    end munged TERM
    rm -rf "$folder"
    ;;
  kill-node)
    end "${3:?node}" KILL
    kill_steps "$3"
    ;;
  start-node) start_node "${3:?node}" ;;
  restart-controller)
    end slurmctld TERM
    if [[ ${3:-} == cold ]]; then start_controller -c; else start_controller; fi
    until_true 30 all_ready || fail "the controller does not come back"
    ;;
  *) fail "there is no command $command" ;;
esac
