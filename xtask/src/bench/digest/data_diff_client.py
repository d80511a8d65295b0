"""Compares all columns of one table on two servers with data-diff, as its command line does, and prints the key of each row
that differs."""

import argparse
import logging
import sys

import data_diff
import psycopg2


def table(arguments, port):
    server = {
        "driver": "postgresql",
        "host": "127.0.0.1",
        "port": port,
        "user": "postgres",
        "password": arguments.password,
        "dbname": arguments.database,
    }
    return data_diff.connect_to_table(server, arguments.table, arguments.key, thread_count=arguments.threads)


def main():
    parser = argparse.ArgumentParser()
    for name in ("database", "password", "table", "key"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--ports", required=True, type=int, nargs=2)
    parser.add_argument("--threads", required=True, type=int)
    arguments = parser.parse_args()
    data_diff.disable_tracking()
    # Types that it takes as they are, which it warns of: both sides are the same server's.
    logging.disable(logging.WARNING)
    source, target = (table(arguments, port) for port in arguments.ports)
    others = tuple(column for column in source.get_schema() if column != arguments.key)
    keys = set()
    try:
        # The command line, too, makes its pools twice as large as it has threads.
        for _, row in data_diff.diff_tables(
            source, target, extra_columns=others, max_threadpool_size=2 * arguments.threads
        ):
            keys.add(row[0])
    except psycopg2.Error as error:
        sys.exit(str(error).splitlines()[0])
    for key in sorted(keys):
        print(key)


main()
