// Tables: small ones as they are, large ones with search, filters, sorting and pages.

/** A box that scrolls sideways where its content is wider, and says so. */
function scrollBox(name, content, size = "") {
  const attributes = { class: `scroll ${size}`, tabindex: "0", role: "region", "aria-label": name };
  const box = element("div", attributes, content);
  const hint = element("p", { class: "hint", hidden: "" }, "This table scrolls sideways →");
  const look = () => {
    hint.hidden = box.scrollWidth <= box.clientWidth + 1;
  };
  const observer = new ResizeObserver(look);
  observer.observe(box);
  observer.observe(content);
  return element("div", { class: "scrolls" }, hint, box);
}

/** Whether a cell is a number: a text of digits, or a node of class numeric. */
function isNumeric(cell) {
  if (cell instanceof Element) {
    return cell.classList.contains("numeric");
  }
  return /^[-−+–\d.,]*$/.test(cell);
}

/**
 * A table of {cells, kind}; the first cell names its row, columns of numbers stand right.
 *
 * Heads and cells are texts or nodes.
 */
function table(heads, rows, name, size = "") {
  const alignment = heads.map((head, i) => {
    const isRight = i > 0 && rows.every(({ cells }) => isNumeric(cells[i]));
    return isRight ? "num" : "";
  });
  const head = element(
    "tr",
    {},
    ...heads.map((text, i) => element("th", { scope: "col", class: alignment[i] }, text)),
  );
  const body = rows.map(({ cells, kind }) => {
    const drawnCells = cells.map((cell, i) => {
      const content = cell instanceof Node ? cell : String(cell);
      if (i === 0) {
        return element("th", { scope: "row" }, content);
      }
      return element("td", { class: alignment[i] }, content);
    });
    return element("tr", { class: kind || "" }, ...drawnCells);
  });
  const whole = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
  return scrollBox(name, whole, size);
}

/** Buttons of which one is pressed; `choose` is called with its name, at once with the first. */
function choices(names, label, choose) {
  const buttons = names.map((name) => element("button", { type: "button" }, metricName(name)));
  const press = (chosen) => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
    choose(names[chosen]);
  };
  buttons.forEach((button, i) => button.addEventListener("click", () => press(i)));
  press(0);
  return element("div", { class: "choices", role: "group", "aria-label": label }, ...buttons);
}

const PAGE = 50;  // rows of a page
const TYPING = 150;  // milliseconds without a key before the search runs

/**
 * A table with search, filters, sorting and pages.
 *
 * rows: of any kind; found(row) is the lower-case text that the search looks in.
 * columns: {name, key, hint, says, downFirst, isRight}: key(row) is what is sorted by.
 * filters: {name, says, holds}: buttons that leave the rows for which holds(row).
 * draw: makes the <tr> of a row.  prefix: of the ids of its parts.  what: the rows in the plural.
 * first: {column, isDown}, how it is sorted at first.
 */
class PagedTable {
  constructor({ rows, columns, filters, found, draw, prefix, what, placeholder, first }) {
    this.all = rows;
    this.rows = rows;
    this.columns = columns;
    this.filters = filters;
    this.found = found;
    this.draw = draw;
    this.prefix = prefix;
    this.what = what;
    this.column = first ? first.column : 0;
    this.isDown = first ? first.isDown : false;
    this.page = 0;
    this.pressed = new Set();
    this.makeControls(placeholder);
    this.makeTable();
    this.makePages();
  }

  id(name) {
    return this.prefix + name;
  }

  makeControls(placeholder) {
    this.search = element("input", { id: this.id("search"), type: "search", placeholder });
    this.order = element("select", { id: this.id("order") });
    this.columns.forEach(({ name, hint }, i) => {
      this.order.append(element("option", { value: String(i) }, name + (hint || "")));
    });
    this.direction = element(
      "button",
      { id: this.id("direction"), type: "button", "aria-label": "direction of sorting" },
    );
    const buttons = this.filters.map((filter) => this.filterButton(filter));
    this.controls = element(
      "div",
      { class: "controls", role: "search" },
      element("label", { for: this.search.id }, "Search"),
      this.search,
      ...buttons,
      element(
        "span",
        { class: "together" },
        element("label", { for: this.order.id }, "Sort by"),
        this.order,
        this.direction,
      ),
    );
    let waiting = 0;
    this.search.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.arrange(), TYPING);
    });
    this.order.addEventListener("change", () => {
      const chosen = Number(this.order.value);
      this.sortBy(chosen, this.columns[chosen].downFirst);
    });
    this.direction.addEventListener("click", () => this.sortBy(this.column, !this.isDown));
  }

  filterButton(filter) {
    const count = this.all.filter(filter.holds).length;
    const attributes = { type: "button", "aria-pressed": "false", "data-tip": filter.says };
    const button = element("button", attributes, `${filter.name} (${counted(count)})`);
    button.addEventListener("click", () => {
      const isPressed = !this.pressed.has(filter);
      if (isPressed) {
        this.pressed.add(filter);
      } else {
        this.pressed.delete(filter);
      }
      button.setAttribute("aria-pressed", String(isPressed));
      this.arrange();
    });
    return button;
  }

  makeTable() {
    this.heads = this.columns.map(({ name, downFirst, isRight, says }, i) => {
      const attributes = { type: "button", ...(says ? { "data-tip": says } : {}) };
      const button = element("button", attributes, name);
      const isNew = () => this.column !== i;
      button.addEventListener("click", () => this.sortBy(i, isNew() ? downFirst : !this.isDown));
      return element("th", { scope: "col", class: isRight ? "num" : "" }, button);
    });
    this.body = element("tbody");
    const head = element("thead", {}, element("tr", {}, ...this.heads));
    this.box = scrollBox(this.what, element("table", { id: this.id("table") }, head, this.body));
  }

  makePages() {
    this.previous = element("button", { id: this.id("previous"), type: "button" }, "Previous");
    this.next = element("button", { id: this.id("next"), type: "button" }, "Next");
    this.status = element("span", { id: this.id("page"), role: "status" });
    this.pages = element(
      "nav",
      { class: "controls", "aria-label": `pages of the ${this.what}` },
      this.previous,
      this.status,
      this.next,
    );
    this.previous.addEventListener("click", () => this.turn(-1));
    this.next.addEventListener("click", () => this.turn(1));
  }

  /** The nodes of the table in their order; `more` stands beside the pages. */
  nodes(...more) {
    this.pages.append(...more);
    this.arrange();
    return [this.controls, this.box, this.pages];
  }

  sortBy(column, isDown) {
    this.column = column;
    this.isDown = Boolean(isDown);
    this.arrange();
  }

  /** Search, filter and sort; the first page is shown. */
  arrange() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const filters = [...this.pressed];
    const { key } = this.columns[this.column];
    const sign = this.isDown ? -1 : 1;
    this.rows = this.all
      .filter((row) => words.every((word) => this.found(row).includes(word)))
      .filter((row) => filters.every((filter) => filter.holds(row)))
      .sort((a, b) => this.compare(key(a), key(b), sign));
    this.heads.forEach((head, i) => {
      const sorted = this.isDown ? "descending" : "ascending";
      head.setAttribute("aria-sort", i === this.column ? sorted : "none");
    });
    this.order.value = String(this.column);
    this.direction.textContent = this.isDown ? "descending" : "ascending";
    this.page = 0;
    this.render();
  }

  /** Rows without a value stand last in either direction; equal ones keep their order. */
  compare(a, b, sign) {
    if (a === null || b === null) {
      return Number(a === null) - Number(b === null);
    }
    if (a < b) {
      return -sign;
    }
    return a > b ? sign : 0;
  }

  render() {
    const pages = Math.max(Math.ceil(this.rows.length / PAGE), 1);
    const start = this.page * PAGE;
    this.body.replaceChildren(...this.rows.slice(start, start + PAGE).map(this.draw));
    const count = counted(this.rows.length);
    this.status.textContent = `page ${this.page + 1} of ${pages}, ${count} ${this.what}`;
    this.previous.disabled = this.page === 0;
    this.next.disabled = this.page + 1 >= pages;
  }

  turn(by) {
    this.page += by;
    this.render();
    this.controls.closest("section").querySelector("h2").focus();
  }
}
