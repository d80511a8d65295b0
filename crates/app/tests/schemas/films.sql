-- Film rental: kinds of its own, text search, partitions, row-level security, and what reads the tables.
CREATE TYPE rating AS ENUM ('G', 'PG', 'R-17');
CREATE DOMAIN release_year AS int CHECK (VALUE BETWEEN 1901 AND 2155);
CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.changed = now(); RETURN NEW; END $$;
CREATE FUNCTION joined(text, text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT coalesce($1 || ', ', '') || $2 $$;
CREATE AGGREGATE list_of (text) (SFUNC = joined, STYPE = text);
CREATE SEQUENCE film_seq START 10;
CREATE TABLE film (
    id int PRIMARY KEY DEFAULT nextval('film_seq'), title text NOT NULL, about text, year release_year,
    rated rating DEFAULT 'G'::rating, extras text[] DEFAULT '{}', words tsvector NOT NULL,
    cost numeric(5, 2) NOT NULL DEFAULT 19.99, taxed numeric GENERATED ALWAYS AS (cost * 1.2) STORED,
    changed timestamptz NOT NULL DEFAULT now());
ALTER SEQUENCE film_seq OWNED BY film.id;
CREATE INDEX film_words ON film USING gist (words); CREATE INDEX film_extras ON film USING gin (extras);
CREATE TRIGGER words BEFORE INSERT OR UPDATE ON film FOR EACH ROW
    EXECUTE FUNCTION tsvector_update_trigger('words', 'pg_catalog.english', 'title', 'about');
CREATE TRIGGER touched BEFORE UPDATE ON film FOR EACH ROW EXECUTE FUNCTION touched();
CREATE TABLE customer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, active bool NOT NULL DEFAULT true);
ALTER TABLE customer ENABLE ROW LEVEL SECURITY;
CREATE POLICY only_active ON customer FOR SELECT USING (active);
CREATE TABLE rental (id int PRIMARY KEY, film int NOT NULL REFERENCES film ON UPDATE CASCADE ON DELETE RESTRICT,
    customer bigint NOT NULL REFERENCES customer, during tstzrange);
CREATE UNIQUE INDEX rental_once ON rental (film, customer, lower(during));
CREATE TABLE payment (id int NOT NULL, paid date NOT NULL, rental int REFERENCES rental, amount numeric(5, 2) NOT NULL,
    PRIMARY KEY (paid, id)) PARTITION BY RANGE (paid);
CREATE TABLE payment_01 PARTITION OF payment FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
CREATE TABLE payment_02 PARTITION OF payment FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
CREATE TABLE payment_rest PARTITION OF payment DEFAULT;
CREATE INDEX payment_rental ON payment (rental);
CREATE STATISTICS payment_stats (dependencies) ON rental, amount FROM payment_rest;
CREATE VIEW film_list AS SELECT rated, list_of(title) AS titles FROM film GROUP BY rated;
CREATE MATERIALIZED VIEW paid_by_month AS SELECT date_trunc('month', paid) AS month, sum(amount) FROM payment GROUP BY 1;
COMMENT ON TYPE rating IS 'who may see it'; COMMENT ON INDEX film_words IS 'search';
CREATE ROLE desk; GRANT SELECT, UPDATE (name) ON customer TO desk; ALTER TABLE rental OWNER TO desk;
INSERT INTO film (title, about, year, rated, extras)
    SELECT 'Film ' || n, 'A tale of ' || n, 1950 + n % 70, (ARRAY['G', 'PG', 'R-17'])[1 + n % 3]::rating, ARRAY['cut ' || n, NULL] FROM generate_series(1, 300) n;
INSERT INTO customer (name, active) SELECT 'c ' || n, n % 5 > 0 FROM generate_series(1, 80) n;
INSERT INTO rental SELECT n, 10 + n % 300, 1 + n % 80, tstzrange('2024-01-01', '2024-01-01'::timestamptz + n * interval '1 hour') FROM generate_series(1, 200) n;
INSERT INTO payment SELECT n, date '2024-01-01' + n % 90, 1 + n % 200, n % 100 FROM generate_series(1, 600) n;
