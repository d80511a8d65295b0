"""SQLAlchemy: an engine with its pool, sessions, nested transactions, streamed results, on psycopg."""

import os
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import ForeignKey, create_engine, func, inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from clients import run


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "alc_customer"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    orders: Mapped[list["Order"]] = relationship(back_populates="customer")


class Order(Base):
    __tablename__ = "alc_order"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id))
    amount: Mapped[int]
    customer: Mapped[Customer] = relationship(back_populates="orders")


def engine(port, **options):
    url = f"postgresql+psycopg://postgres:{os.environ['PGPASSWORD']}@127.0.0.1:{port}/postgres"
    return create_engine(url, **options)


def schema_is_made_and_read(port):
    db = engine(port)
    Base.metadata.drop_all(db)
    Base.metadata.create_all(db)
    assert {c["name"] for c in inspect(db).get_columns("alc_order")} == {"id", "customer_id", "amount"}
    assert inspect(db).get_foreign_keys("alc_order")[0]["referred_table"] == "alc_customer"
    db.dispose()


def savepoints_keep_the_rest(port):
    db = engine(port)
    with Session(db) as session, session.begin():
        session.add(Customer(name="ann", orders=[Order(amount=i) for i in range(10)]))
        session.flush()
        for name in ("ann", "bob"):
            try:
                with session.begin_nested():
                    session.add(Customer(name=name))
            except IntegrityError:
                assert name == "ann"
    with Session(db) as session:
        assert session.scalars(select(Customer.name).order_by(Customer.name)).all() == ["ann", "bob"]
        assert len(session.scalars(select(Customer).where(Customer.name == "ann")).one().orders) == 10
        session.execute(text("DELETE FROM alc_order"))
        session.rollback()
        assert session.scalar(select(func.count()).select_from(Order)) == 10
    db.dispose()


def many_threads_share_a_pool(port):
    db = engine(port, pool_size=4, max_overflow=2, pool_pre_ping=True, isolation_level="REPEATABLE READ")

    def work(number):
        for i in range(10):
            with Session(db) as session, session.begin():
                customer = session.scalars(select(Customer).where(Customer.name == "bob")).one()
                session.add(Order(customer=customer, amount=number * 100 + i))
                assert session.scalar(text("SHOW transaction_isolation")) == "repeatable read"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    with Session(db) as session:
        bob = select(func.count()).join(Customer).where(Customer.name == "bob")
        assert session.scalar(bob.select_from(Order)) == 80
    db.dispose()


def results_are_streamed(port):
    db = engine(port)
    with db.connect() as conn:
        rows = conn.execution_options(yield_per=100).execute(text("SELECT generate_series(1, 1000) AS i"))
        assert sum(row.i for row in rows) == 500_500
    # Many rows in one statement, with their keys returned.
    with Session(db) as session, session.begin():
        session.add_all([Customer(name=f"many {i}") for i in range(1500)])
    with db.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("VACUUM alc_customer"))
    db.dispose()


run([schema_is_made_and_read, savepoints_keep_the_rest, many_threads_share_a_pool, results_are_streamed])
