// Stands in for the scripts of the front end, which only a server has: as much of them as the tests under node need.
import { register } from "node:module";

export const app = { graph: /** @type {any} */ (null), canvas: {}, registerExtension: (extension) => { app.extension = extension; } };
export const api = { addEventListener: (name, heard) => { api[name] = heard; } };
globalThis.frontEnd = { app, api };
globalThis.document = { addEventListener() {}, querySelector: () => null, getElementById: () => null };
globalThis.setInterval = (tick) => { app.tick = tick; };

const scripts = "data:text/javascript,export const { app, api } = globalThis.frontEnd;";
register("data:text/javascript," + encodeURIComponent(`export const resolve = (name, context, next) =>
    name.includes("/scripts/") ? { url: "${scripts}", shortCircuit: true } : next(name, context);`));

export class Graph {
    nodes = new Map();
    links = {};
    constructor(id = "root") { this.id = id; }
    getNodeById(id) { return this.nodes.get(id); }
    add(node) {
        node.graph = this;
        node.id ??= this.nodes.size + 1;
        this.nodes.set(node.id, node);
        node.onAdded?.(this);
        return node;
    }
    remove(node) {
        this.nodes.delete(node.id);
        node.onRemoved?.();
        node.graph = null;
    }
    /** Wire the first output of a node to an input. */
    wire(from, to, name, type = "STRING") {
        const id = Object.keys(this.links).length + 1;
        this.links[id] = { origin_id: from?.id ?? -10, target_id: to.id };
        (to.inputs ??= []).push({ name, type, link: id });
    }
}

/** A node of a class with these widgets. */
export const node = (type, values = {}) => ({ type, title: type, size: [200, 100],
    widgets: Object.entries(values).map(([name, value]) => ({ name, value })) });
