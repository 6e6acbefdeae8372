// A schedule as a picture: sigma (log scale) against network calls, jumps up in noise in another colour, the window
// shaded. Pure: numbers in, SVG text out.

/** @typedef {{sigmas: number[], path: number[], window: [number, number], calls: number}} Drawing */

const WIDTH = 260, HEIGHT = 84, LEFT = 34, RIGHT = 4, TOP = 5, BOTTOM = 13;

/** Where each visited level stands. @param {Drawing} drawing @returns {{x: number, y: number, level: number}[]} */
export function places(drawing) {
    const scale = heights(drawing.sigmas);
    const across = (WIDTH - LEFT - RIGHT) / Math.max(drawing.path.length - 1, 1);
    return drawing.path.map((level, i) => ({ x: LEFT + i * across, y: scale(drawing.sigmas[level]), level }));
}

/** sigma -> height in the picture; 0 lies one step under the smallest sigma. @param {number[]} sigmas */
export function heights(sigmas) {
    const positive = sigmas.filter((sigma) => sigma > 0);
    const high = Math.log(Math.max(...positive, 1e-6)), low = Math.log(Math.min(...positive, Math.exp(high)));
    const floor = low - Math.max((high - low) / 12, 0.05), span = HEIGHT - TOP - BOTTOM;
    return (/** @type {number} */ sigma) => {
        const value = sigma > 0 ? Math.min(Math.max(Math.log(sigma), floor), high) : floor;
        return TOP + span * (high - value) / Math.max(high - floor, 1e-9);
    };
}

const line = (/** @type {{x: number, y: number}[]} */ points) =>
    points.map((p) => `${p.x.toFixed(1)},${p.y.toFixed(1)}`).join(" ");
const short = (/** @type {number} */ value) => Number(value.toPrecision(2)).toString();

/** @param {Drawing} drawing @returns {string} */
export function timelineSvg(drawing) {
    const points = places(drawing), y = heights(drawing.sigmas), down = [], up = [];
    for (let i = 1; i < points.length; i++) {
        (points[i].level > points[i - 1].level ? down : up).push(`M${line([points[i - 1], points[i]]).replace(" ", "L")}`);
    }
    const [from, to] = drawing.window, top = y(from), bottom = y(to);
    const most = Math.max(...drawing.sigmas), least = Math.min(...drawing.sigmas.filter((s) => s > 0), most);
    const shade = from > to ? `<rect class="window" x="${LEFT}" y="${top.toFixed(1)}" width="${WIDTH - LEFT - RIGHT}"
        height="${Math.max(bottom - top, 0).toFixed(1)}"/>` : "";
    return `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img">${shade}
        <path class="down" d="${down.join("")}"/><path class="up" d="${up.join("")}"/>
        <path class="axis" d="M${LEFT},${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}"/>
        <text x="2" y="${TOP + 7}">${short(most)}</text>
        <text x="2" y="${(y(least) + 3).toFixed(1)}">${short(least)}</text>
        <text x="${LEFT}" y="${HEIGHT - 3}">sigma against network calls</text>
        <text x="${WIDTH - RIGHT}" y="${HEIGHT - 3}" text-anchor="end">${drawing.calls}</text></svg>`;
}
