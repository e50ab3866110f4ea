// Controls made from the table of settings.

import { GROUPS, SETTINGS } from "./settings.js";

/** An element with attributes and children. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export class Controls {
  /**
   * @param {HTMLElement} place where they go
   * @param {(key: string, value: string|number|boolean) => void} changed told what was set
   */
  constructor(place, changed) {
    this.inputs = new Map();
    this.boxes = new Map();
    for (const { key, title } of GROUPS) {
      const box = element("fieldset", { id: `group-${key}` }, element("legend", {}, title));
      for (const setting of SETTINGS.filter(({ of }) => of === key)) {
        box.append(this.make(setting, changed));
      }
      this.boxes.set(key, box);
      place.append(box);
    }
  }

  make(setting, changed) {
    const { key, kind, label } = setting;
    const id = `set-${key}`;
    if (kind === "switch") {
      const input = element("input", { type: "checkbox", id });
      input.addEventListener("change", () => changed(key, input.checked));
      const row = element("label", { class: "switch" }, input, label);
      this.inputs.set(key, { setting, input, row });
      return row;
    }
    const name = element("label", { for: id }, label);
    const row = element("div", { class: "control" }, name);
    if (kind === "choice") {
      const options = setting.options.map((o) => element("option", { value: o.value }, o.label));
      const input = element("select", { id }, ...options);
      input.addEventListener("change", () => {
        changed(key, setting.options.find(({ value }) => String(value) === input.value).value);
      });
      row.append(input);
      this.inputs.set(key, { setting, input, row });
      return row;
    }
    const { low, high, by } = setting;
    const input = element("input", { type: "range", id, min: low, max: high, step: by });
    const told = element("output", { for: id });
    input.addEventListener("input", () => {
      told.value = shown(setting, Number(input.value));
      changed(key, Number(input.value));
    });
    name.append(" ", told);
    row.append(input);
    this.inputs.set(key, { setting, input, row, told });
    return row;
  }

  /** Show a state; hide what has no meaning in it. */
  show(state) {
    for (const [key, { setting, input, row, told }] of this.inputs) {
      row.hidden = setting.when ? !setting.when(state) : false;
      if (setting.kind === "switch") input.checked = state[key];
      else input.value = state[key];
      if (told) told.value = shown(setting, state[key]);
      setting.options?.forEach(({ unless }, k) => {
        if (unless) input.options[k].hidden = input.options[k].disabled = unless(state);
      });
    }
    for (const box of this.boxes.values()) {
      box.hidden = [...box.children].slice(1).every((row) => row.hidden);
    }
  }
}

function shown({ unit }, value) {
  return unit ? `${value} ${unit}` : `${value}`;
}
