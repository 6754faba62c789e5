#!/usr/bin/env bash
# A real Slurm of one node, or a few, on this machine, to try `launch=slurm` and to run `pytest -m slurm`; needs root.
#
#     apt-get install slurm-wlm munge          # Debian, Ubuntu
#     sudo scripts/slurm_local.sh start        # a controller and one node with all cores of this machine
#     runner train -m +experiment=demo seed=0,1,2 launch=slurm
#     squeue; sinfo
#     sudo scripts/slurm_local.sh stop
#
#     scripts/slurm_local.sh status | restart
#     sudo SLURM_LOCAL_NODES=2 scripts/slurm_local.sh start    # two nodes, both of them this machine
#
# No accounting: squeue and scontrol work, sacct does not. Requeued jobs start again after seconds instead of two
# minutes, so that tests are quick. State lies in SLURM_LOCAL_DIR (default /var/lib/slurm-local); `stop` removes it. The
# machine's own Slurm, if it has one, is not touched unless it runs: then this script refuses.
set -euo pipefail

dir=${SLURM_LOCAL_DIR:-/var/lib/slurm-local}
conf=$dir/slurm.conf
link=/etc/slurm/slurm.conf
host=$(hostname -s)
nodes=${SLURM_LOCAL_NODES:-1}
port=${SLURM_LOCAL_NODE_PORT:-16818} # of the first node; the others have the next ones

fail() {
  echo "error: $1" >&2
  [ $# -lt 2 ] || echo "  $2" >&2
  exit 1
}

ours() { [ -L "$link" ] && [ "$(readlink "$link")" = "$conf" ]; }

names() { # of the nodes
  [ "$nodes" = 1 ] && echo "$host" && return
  seq -f "$host-%g" "$nodes"
}

alive() { # PIDFILE NAME: whether the process in the file lives and is that program
  [ -s "$1" ] && [ "$(cat "/proc/$(cat "$1")/comm" 2>/dev/null)" = "$2" ]
}

end() { # PIDFILE NAME
  alive "$1" "$2" || return 0
  local pid
  pid=$(cat "$1")
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 50); do
    alive "$1" "$2" || return 0
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
}

start() {
  [ "$(id -u)" = 0 ] || fail "starting Slurm needs root" "sudo $0 start"
  for program in slurmctld slurmd munged sbatch; do
    command -v "$program" >/dev/null || fail "there is no $program" "apt-get install slurm-wlm munge"
  done
  if ours && alive "$dir/slurmctld.pid" slurmctld && ls "$dir"/slurmd-*.pid >/dev/null 2>&1; then
    echo "it runs already"
    return
  fi
  if [ -e "$link" ] && ! ours; then
    fail "$link is there: this machine has a Slurm of its own" "use that one; this script would get in its way"
  fi
  mkdir -p "$dir/state" /etc/slurm
  start_munge
  local cores memory
  cores=$(($(nproc) > nodes ? $(nproc) / nodes : 1))
  memory=$(awk -v nodes="$nodes" '/MemTotal/ {print int($2 / 1024 * 0.9 / nodes)}' /proc/meminfo)
  cat >"$conf" <<EOF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
SlurmctldPort=${SLURM_LOCAL_PORT:-16817}
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=${SLURM_LOCAL_KILL_WAIT:-30}
MinJobAge=300
SlurmctldTimeout=10
SlurmdTimeout=30
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1,bf_resolution=1
PriorityType=priority/basic
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
EOF
  local name
  for name in $(names); do
    echo "NodeName=$name NodeHostname=$host NodeAddr=127.0.0.1 Port=$port CPUs=$cores RealMemory=$memory State=UNKNOWN"
    port=$((port + 1))
  done >>"$conf"
  echo "PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP" >>"$conf"
  ln -sfn "$conf" "$link"
  slurmctld
  for name in $(names); do
    mkdir -p "$dir/spool-$name"
    slurmd -N "$name"
  done
  for _ in $(seq 100); do
    if [ "$(sinfo -h -N -o %T 2>/dev/null | grep -Ec 'idle|mixed|allocated')" = "$nodes" ]; then
      echo "Slurm runs: $nodes of $cores cores each, partition local"
      return
    fi
    sleep 0.2
  done
  sinfo || true
  tail -n 5 "$dir"/slurm*.log || true
  fail "the node does not come up" "see $dir/slurmctld.log"
}

start_munge() { # its folders belong to it and to nobody else, or it refuses to start
  munge -n >/dev/null 2>&1 && return
  [ -s /etc/munge/munge.key ] || { mkdir -p /etc/munge && dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none; }
  mkdir -p /run/munge /var/log/munge /var/lib/munge
  chown -R munge:munge /etc/munge /run/munge /var/log/munge /var/lib/munge
  chmod 700 /etc/munge /var/log/munge /var/lib/munge
  chmod 755 /run/munge
  chmod 400 /etc/munge/munge.key
  setpriv --reuid=munge --regid=munge --clear-groups munged
  touch "$dir/munge-is-ours"
  for _ in $(seq 50); do
    munge -n >/dev/null 2>&1 && return
    sleep 0.1
  done
  fail "munged does not answer" "see /var/log/munge/munged.log"
}

stop() {
  [ "$(id -u)" = 0 ] || fail "stopping Slurm needs root" "sudo $0 stop"
  if ! ours; then
    echo "it does not run"
    return
  fi
  local jobs
  jobs=$(timeout 10 squeue -h -o %A 2>/dev/null | sort -u | tr '\n' ' ' || true)
  # shellcheck disable=SC2086  # several ids
  [ -z "$jobs" ] || timeout 10 scancel $jobs || true
  for _ in $(seq 50); do
    [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break
    sleep 0.2
  done
  local pid
  for pid in "$dir"/slurmd-*.pid; do
    end "$pid" slurmd
  done
  end "$dir/slurmctld.pid" slurmctld
  if [ -e "$dir/munge-is-ours" ]; then
    end /run/munge/munged.pid munged
  fi
  rm -f "$link"
  rm -rf "$dir"
  echo "stopped"
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  restart) stop && start ;;
  status)
    if ours && timeout 10 sinfo -h >/dev/null 2>&1; then sinfo && squeue; else echo "it does not run" && exit 1; fi
    ;;
  *)
    sed -n '2,17s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
