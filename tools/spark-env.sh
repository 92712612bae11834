# Written by `make setup`; spark-submit and pyspark read it at every start.
# If JAVA_HOME has changed since `make setup`, the user chose it, so it stays.
if [ "${JAVA_HOME:-}" = @JAVA_HOME@ ]; then
    JAVA_HOME=@WRAPPER_HOME@
fi
# Java encodes file names in the locale's encoding. If that is not UTF-8, non-ASCII letters would become "?".
case "${LC_ALL:-${LC_CTYPE:-${LANG:-}}}" in
*[Uu][Tt][Ff]*8*) ;;
*) export LC_ALL=C.UTF-8 ;;
esac
# In Java, our jobs only move bytes, so light compilation is fast enough. In a job of seconds, the optimising compiler
# would take a sixth of the time of two cores. Options in SPARK_SUBMIT_OPTS win; Java's default is
# -XX:TieredStopAtLevel=4.
export SPARK_SUBMIT_OPTS="-XX:TieredStopAtLevel=1 ${SPARK_SUBMIT_OPTS:-}"
# Spark redraws a progress bar for each stage in one line, which suits a terminal but not a log.
if [ -t 2 ]; then
    SPARK_SUBMIT_OPTS="-Dspark.ui.showConsoleProgress=true $SPARK_SUBMIT_OPTS"
fi
# A user id often has no name in a container (docker --user 2000, OpenShift), and then Java's login fails.
if ! id -un >/dev/null 2>&1; then
    export HADOOP_USER_NAME="${HADOOP_USER_NAME:-user$(id -u)}"
    SPARK_SUBMIT_OPTS="--patch-module=jdk.security.auth=@WRAPPER_HOME@/login -Xshare:off -Duser.home='${HOME:-/}' $SPARK_SUBMIT_OPTS"
fi
# Spark looks up this machine's name even if it needs no address. Java takes a name of digits for an address.
unknown='' digits=''
case $(uname -n) in
*[!0-9.]*) ! command -v getent >/dev/null || getent ahosts "$(uname -n)" >/dev/null || unknown=yes ;;
*) digits=yes ;;
esac
if [ -n "$unknown$digits" ] && [ -z "${SPARK_LOCAL_IP:-}${SPARK_LOCAL_HOSTNAME:-}" ]; then
    SPARK_LOCAL_HOSTNAME=$(hostname -I 2>/dev/null | grep -oE '[0-9]+(\.[0-9]+){3}' | head -n 1)
    export SPARK_LOCAL_HOSTNAME="${SPARK_LOCAL_HOSTNAME:-127.0.0.1}"
fi
# If AWS's credentials are set, Spark looks up the name in any case, and ends with a trace if it has no address.
if [ -n "$unknown" ] && [ -n "${AWS_ACCESS_KEY_ID:-}" ] && [ -n "${AWS_SECRET_ACCESS_KEY:-}" ]; then
    echo "error: host name $(uname -n): found no address of it, which Spark needs if AWS_ACCESS_KEY_ID is set; add the name to /etc/hosts, or unset AWS_ACCESS_KEY_ID" >&2
    exit 2
fi
# Java keeps temporary files in /tmp, whatever TMPDIR says. Where /tmp is read-only or full, they go elsewhere.
if ! { probe=$(mktemp /tmp/probe.XXXXXX) && echo >"$probe"; } 2>/dev/null; then
    export SPARK_LAUNCHER_OPTS="-XX:-UsePerfData ${SPARK_LAUNCHER_OPTS:-}"
    SPARK_SUBMIT_OPTS="-XX:-UsePerfData -Djava.io.tmpdir='${TMPDIR:-/var/tmp}' $SPARK_SUBMIT_OPTS"
fi
rm -f "${probe:-}"
