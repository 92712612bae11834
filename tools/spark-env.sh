# Read by spark-submit and pyspark at every start; written by `make setup`.
# A JAVA_HOME that is not the one of that time was chosen since, and stays.
if [ "${JAVA_HOME:-}" = @JAVA_HOME@ ]; then
    JAVA_HOME=@WRAPPER_HOME@
fi
# Java reads and writes file names in the locale's encoding; without a UTF-8 one, other letters would become "?".
case "${LC_ALL:-${LC_CTYPE:-${LANG:-}}}" in
*[Uu][Tt][Ff]*8*) ;;
*) export LC_ALL=C.UTF-8 ;;
esac
# In Java our jobs move bytes. Compiled lightly that takes no longer, and the optimising compiler would take a sixth of two
# cores' time from a job of seconds. What stands in SPARK_SUBMIT_OPTS wins: -XX:TieredStopAtLevel=4 is Java's own way.
export SPARK_SUBMIT_OPTS="-XX:TieredStopAtLevel=1 ${SPARK_SUBMIT_OPTS:-}"
# Spark draws a bar for each stage, over and over in one line: for a terminal, not for a log.
if [ -t 2 ]; then
    SPARK_SUBMIT_OPTS="-Dspark.ui.showConsoleProgress=true $SPARK_SUBMIT_OPTS"
fi
