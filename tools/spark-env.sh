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
