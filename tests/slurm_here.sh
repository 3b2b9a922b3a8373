#!/bin/bash
# Sets up Slurm on this machine for the tests of `camelid launch --on=slurm`: one node, no accounting, no cgroups.
#
#     apt-get install slurm-wlm munge
#     eval "$(tests/slurm_here.sh start)"     # starts the daemons as root, and sets variables for clients and tests
#     python -m pytest tests/launch/test_slurm.py
#     tests/slurm_here.sh stop
#
# Variables: SLURM_HERE, the folder of its files (default /tmp/slurm); SLURM_CPUS, the CPUs that the node claims to have
# (default 8, so that several small jobs run at once on any machine).
set -euo pipefail

folder=${SLURM_HERE:-/tmp/slurm}
cpus=${SLURM_CPUS:-8}
export SLURM_CONF=$folder/slurm.conf

start() {
    mkdir -p "$folder"/{state,spool}
    chmod 711 "$folder"
    [ -s "$folder/munge.key" ] || head -c 1024 /dev/urandom > "$folder/munge.key"
    chmod 400 "$folder/munge.key"
    cat > "$SLURM_CONF" <<CONF
ClusterName=here
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
# Without cgroups and accounting: proctrack/cgroup, the default, makes srun fail with exit code 0 in a container.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# The node claims the CPUs of this file, however many the machine has.
SlurmdParameters=config_overrides
# Short waits: a requeued job starts again after seconds, and a time limit kills after 30 s.
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=1,bf_interval=2,defer_batch
ReturnToService=2
KillWait=30
OverTimeLimit=0
JobRequeue=1
NodeName=$(hostname) NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=8000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" >&2
    slurmctld -f "$SLURM_CONF" >&2
    slurmd -f "$SLURM_CONF" >&2
    for _ in $(seq 60); do
        [ "$(sinfo --noheader --format=%t 2> /dev/null)" = idle ] && break
        sleep 0.5
    done
    [ "$(sinfo --noheader --format=%t)" = idle ] || { echo "the node is not idle: see $folder/slurmd.log" >&2; exit 1; }
    echo "export SLURM_CONF=$SLURM_CONF CAMELID_TEST_SLURM=1"
}

stop() {
    for daemon in slurmd slurmctld munged; do
        [ -s "$folder/$daemon.pid" ] && kill "$(cat "$folder/$daemon.pid")" || true
    done
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    *) echo "usage: $0 start|stop" >&2; exit 2 ;;
esac
