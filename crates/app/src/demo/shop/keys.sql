-- What belongs to the tables but is cheaper to make once the rows are there.
ALTER TABLE shop.order_items ADD PRIMARY KEY (order_id, line);
ALTER TABLE shop.orders ADD PRIMARY KEY (id);
ALTER TABLE shop.events ADD PRIMARY KEY (id, day);
ALTER TABLE shop.customers ADD PRIMARY KEY (id);
ALTER TABLE shop.customers ADD UNIQUE (email);
ALTER TABLE shop.addresses ADD PRIMARY KEY (id);
ALTER TABLE shop.sessions ADD PRIMARY KEY (id);
ALTER TABLE shop.ledger ADD PRIMARY KEY (writer, number);
ALTER TABLE shop.categories ADD PRIMARY KEY (id);
ALTER TABLE shop.products ADD PRIMARY KEY (id);
ALTER TABLE shop.accounts ADD PRIMARY KEY (id);
ALTER TABLE shop.documents ADD PRIMARY KEY (id);
ALTER TABLE shop.tags ADD PRIMARY KEY (tag);
ALTER TABLE shop."Größen & Maße" ADD PRIMARY KEY ("Nr");
ALTER TABLE shop.audit REPLICA IDENTITY FULL;

CREATE INDEX ON shop.addresses (customer_id);
CREATE INDEX ON shop.audit (number);
ALTER TABLE shop.addresses ADD FOREIGN KEY (customer_id) REFERENCES shop.customers;
ALTER TABLE shop.categories ADD FOREIGN KEY (parent_id) REFERENCES shop.categories;
ALTER TABLE shop.products ADD FOREIGN KEY (category_id) REFERENCES shop.categories;
ALTER TABLE shop.orders ADD FOREIGN KEY (customer_id) REFERENCES shop.customers;
ALTER TABLE shop.order_items ADD FOREIGN KEY (order_id) REFERENCES shop.orders;
ALTER TABLE shop.order_items ADD FOREIGN KEY (product_id) REFERENCES shop.products;
