import java.io.StringReader;
import java.io.StringWriter;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.sql.Types;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;

/** JDBC as applications use it. Prints {@code ok TARGET NAME} for each behaviour; the test counts them. */
class JdbcClient {
    interface Behaviour {
        void run(int port) throws Exception;
    }

    static Connection connect(int port, String... options) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", "postgres");
        properties.setProperty("password", System.getenv("PGPASSWORD"));
        for (String option : options) {
            String[] parts = option.split("=", 2);
            properties.setProperty(parts[0], parts[1]);
        }
        return DriverManager.getConnection("jdbc:postgresql://127.0.0.1:" + port + "/postgres", properties);
    }

    static void check(boolean holds, Object what) {
        if (!holds) throw new AssertionError(String.valueOf(what));
    }

    static int count(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getInt(1);
        }
    }

    static String state(Statement statement, String sql) {
        try {
            statement.execute(sql);
            return null;
        } catch (SQLException error) {
            return error.getSQLState();
        }
    }

    /** Unnamed first, named and binary from the fifth execution on. */
    static void preparedStatements(int port) throws Exception {
        for (String mode : new String[] {"extended", "extendedForPrepared", "extendedCacheEverything"}) {
            try (Connection c = connect(port, "preferQueryMode=" + mode, "preparedStatementCacheQueries=4")) {
                for (int i = 0; i < 40; i++) {
                    String sql = "SELECT ?::int + " + (i % 3) + ", ?::text, ?::numeric, ?::bytea";
                    try (PreparedStatement s = c.prepareStatement(sql)) {
                        s.setInt(1, i);
                        s.setString(2, i % 2 == 0 ? null : "x");
                        s.setBigDecimal(3, new java.math.BigDecimal("1.25"));
                        s.setBytes(4, new byte[] {0, 1, 2});
                        ResultSet r = s.executeQuery();
                        check(r.next() && r.getInt(1) == i + i % 3 && r.getBytes(4).length == 3, mode + i);
                    }
                }
            }
        }
        try (Connection c = connect(port, "preferQueryMode=simple");
                PreparedStatement s = c.prepareStatement("SELECT ?::int, ?::text")) {
            s.setInt(1, 5);
            s.setString(2, "it's");
            ResultSet r = s.executeQuery();
            check(r.next() && r.getInt(1) == 5 && r.getString(2).equals("it's"), "simple");
        }
    }

    static void serverPreparedOutlivesAChange(int port) throws Exception {
        try (Connection c = connect(port, "prepareThreshold=1"); Statement s = c.createStatement()) {
            s.execute("DROP TABLE IF EXISTS jdbc_s; CREATE TABLE jdbc_s (a int); INSERT INTO jdbc_s VALUES (1)");
            try (PreparedStatement p = c.prepareStatement("SELECT * FROM jdbc_s WHERE a = ?")) {
                for (int i = 0; i < 8; i++) {
                    if (i == 4) s.execute("ALTER TABLE jdbc_s ADD COLUMN b int");
                    p.setInt(1, 1);
                    ResultSet r = p.executeQuery();
                    check(r.next() && r.getMetaData().getColumnCount() == (i < 4 ? 1 : 2), i);
                }
            }
            s.execute("DEALLOCATE ALL");
            try (PreparedStatement p = c.prepareStatement("SELECT a FROM jdbc_s")) {
                for (int i = 0; i < 3; i++) check(p.executeQuery().next(), i);
                s.execute("DISCARD ALL");
                check(p.executeQuery().next(), "after DISCARD ALL");
            }
        }
    }

    static void batches(int port) throws Exception {
        try (Connection c = connect(port); Statement s = c.createStatement()) {
            s.execute("DROP TABLE IF EXISTS jdbc_b; CREATE TABLE jdbc_b (id int PRIMARY KEY, x text)");
            String insert = "INSERT INTO jdbc_b VALUES (?, ?)";
            try (PreparedStatement p = c.prepareStatement(insert, Statement.RETURN_GENERATED_KEYS)) {
                for (int i = 0; i < 3000; i++) {
                    p.setInt(1, i);
                    p.setString(2, "x".repeat(i % 300));
                    p.addBatch();
                }
                check(Arrays.stream(p.executeBatch()).sum() == 3000, "a batch");
                p.setInt(1, 5000);
                p.setString(2, "new");
                p.addBatch();
                p.setInt(1, 7);
                p.setString(2, "taken");
                p.addBatch();
                try {
                    p.executeBatch();
                    check(false, "7 is taken");
                } catch (BatchUpdateException error) {
                    check(error.getSQLState().equals("23505"), error);
                }
            }
            try (Connection rewriting = connect(port, "reWriteBatchedInserts=true");
                    PreparedStatement p = rewriting.prepareStatement(insert)) {
                for (int i = 10000; i < 10500; i++) {
                    p.setInt(1, i);
                    p.setNull(2, Types.VARCHAR);
                    p.addBatch();
                }
                p.executeBatch();
            }
            check(count(c, "SELECT count(*) FROM jdbc_b WHERE id < 10500") >= 3500, "rows");
        }
    }

    static void fetchedInParts(int port) throws Exception {
        try (Connection c = connect(port); Statement s = c.createStatement()) {
            c.setAutoCommit(false);
            s.setFetchSize(50);
            ResultSet rows = s.executeQuery("SELECT i, repeat('x', 2000) FROM generate_series(1, 1234) i");
            int seen = 0;
            try (Statement between = c.createStatement()) {
                while (rows.next()) {
                    check(rows.getInt(1) == ++seen, seen);
                    if (seen % 200 == 0) between.execute("SELECT 1");
                }
            }
            check(seen == 1234, seen);
            c.commit();
        }
    }

    static void transactionsAndSavepoints(int port) throws Exception {
        try (Connection c = connect(port, "autosave=conservative"); Statement s = c.createStatement()) {
            s.execute("DROP TABLE IF EXISTS jdbc_t; CREATE TABLE jdbc_t (i int PRIMARY KEY)");
            c.setAutoCommit(false);
            c.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            s.execute("INSERT INTO jdbc_t VALUES (1)");
            Savepoint savepoint = c.setSavepoint();
            check("23505".equals(state(s, "INSERT INTO jdbc_t VALUES (1)")), "a duplicate");
            c.rollback(savepoint);
            s.execute("INSERT INTO jdbc_t VALUES (2)");
            c.commit();
            s.execute("DELETE FROM jdbc_t");
            c.rollback();
            check(count(c, "SELECT count(*) FROM jdbc_t") == 2, "two rows");
            c.commit();
            c.setReadOnly(true);
            check("25006".equals(state(s, "DELETE FROM jdbc_t")), "read only");
            c.rollback();
        }
    }

    static void copies(int port) throws Exception {
        try (Connection c = connect(port); Statement s = c.createStatement()) {
            s.execute("DROP TABLE IF EXISTS jdbc_c; CREATE TABLE jdbc_c (a int, b text)");
            CopyManager copies = c.unwrap(PGConnection.class).getCopyAPI();
            StringBuilder lines = new StringBuilder();
            for (int i = 0; i < 5000; i++) lines.append(i).append('\t').append("y".repeat(100)).append('\n');
            check(copies.copyIn("COPY jdbc_c FROM STDIN", new StringReader(lines.toString())) == 5000, "in");
            StringWriter out = new StringWriter();
            check(copies.copyOut("COPY jdbc_c TO STDOUT", out) == 5000, "out");
            check(out.toString().length() == lines.length(), "the same");
            try {
                copies.copyIn("COPY jdbc_c FROM STDIN", new StringReader("nonsense\n"));
                check(false, "it fails");
            } catch (SQLException error) {
                check(error.getSQLState().startsWith("22"), error.getSQLState());
            }
            check(count(c, "SELECT count(*) FROM jdbc_c") == 5000, "as before");
        }
    }

    static void notifications(int port) throws Exception {
        try (Connection listener = connect(port); Connection speaker = connect(port);
                Statement l = listener.createStatement(); Statement s = speaker.createStatement()) {
            l.execute("LISTEN jdbc_news");
            s.execute("NOTIFY jdbc_news, 'hello'");
            PGNotification[] heard = listener.unwrap(PGConnection.class).getNotifications(20_000);
            check(heard != null && heard.length == 1 && heard[0].getParameter().equals("hello"), "hello");
        }
    }

    static void cancelsAndTimeouts(int port) throws Exception {
        try (Connection c = connect(port); Statement s = c.createStatement()) {
            s.setQueryTimeout(1);
            check("57014".equals(state(s, "SELECT pg_sleep(60)")), "a time-out is a cancel request");
            s.setQueryTimeout(0);
            check(count(c, "SELECT 1") == 1, "and the connection stays");
        }
    }

    static void metadataAndErrors(int port) throws Exception {
        try (Connection c = connect(port, "ApplicationName=jdbc"); Statement s = c.createStatement()) {
            s.execute("DROP TABLE IF EXISTS jdbc_m; CREATE TABLE jdbc_m (id serial PRIMARY KEY, \"Mixed\" text)");
            ResultSet columns = c.getMetaData().getColumns(null, "public", "jdbc_m", null);
            check(columns.next() && columns.next() && columns.getString("COLUMN_NAME").equals("Mixed"), "columns");
            try (PreparedStatement p = c.prepareStatement("INSERT INTO jdbc_m (\"Mixed\") VALUES (?)", new String[] {"id"})) {
                p.setString(1, "é".repeat(500_000));
                p.executeUpdate();
                ResultSet keys = p.getGeneratedKeys();
                check(keys.next() && keys.getInt(1) == 1, "a key");
            }
            check("42703".equals(state(s, "SELECT nonsense")), "a column");
            check("42601".equals(state(s, "SELEC 1")), "the syntax");
            check(s.execute("SELECT 1; UPDATE jdbc_m SET id = id; SELECT 2"), "several results");
            check(!s.getMoreResults() && s.getUpdateCount() == 1 && s.getMoreResults(), "one after the other");
            ResultSet name = s.executeQuery("SHOW application_name");
            check(name.next() && name.getString(1).equals("jdbc"), "a name");
            c.setSchema("pg_catalog");
            check(c.getSchema().equals("pg_catalog"), "a schema");
        }
    }

    public static void main(String[] arguments) {
        Map<String, Behaviour> behaviours = new LinkedHashMap<>();
        behaviours.put("preparedStatements", JdbcClient::preparedStatements);
        behaviours.put("serverPreparedOutlivesAChange", JdbcClient::serverPreparedOutlivesAChange);
        behaviours.put("batches", JdbcClient::batches);
        behaviours.put("fetchedInParts", JdbcClient::fetchedInParts);
        behaviours.put("transactionsAndSavepoints", JdbcClient::transactionsAndSavepoints);
        behaviours.put("copies", JdbcClient::copies);
        behaviours.put("notifications", JdbcClient::notifications);
        behaviours.put("cancelsAndTimeouts", JdbcClient::cancelsAndTimeouts);
        behaviours.put("metadataAndErrors", JdbcClient::metadataAndErrors);
        boolean failed = false;
        for (String target : System.getenv("TARGETS").split(" ")) {
            String[] parts = target.split("=");
            for (Map.Entry<String, Behaviour> behaviour : behaviours.entrySet()) {
                try {
                    behaviour.getValue().run(Integer.parseInt(parts[1]));
                    System.out.println("ok " + parts[0] + " " + behaviour.getKey());
                } catch (Throwable error) {
                    failed = true;
                    System.out.println("FAILED " + parts[0] + " " + behaviour.getKey());
                    error.printStackTrace(System.out);
                }
            }
        }
        System.exit(failed ? 1 : 0);
    }
}
