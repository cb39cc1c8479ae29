"""The 3D view of a report: bodies before their photo in plain WebGL 2, in one page, with no library."""

from __future__ import annotations

import base64
import json

from fitkit.show.inputs import FloatArray, IntArray, Picture


def viewer_data(
    bodies: FloatArray,
    faces: IntArray,
    colors: Picture,
    focal: FloatArray,
    center: FloatArray,
    width: int,
    height: int,
) -> str:
    """What the script draws, as JSON that is safe inside a `<script>` element.

    Args:
        bodies: `(B, V, 3)` finite, metres, camera frame.
        faces: `(F, 3)`.
        colors: `(B, 3)` RGB 0..255.
        focal: `(2,)` pixels.
        center: `(2,)` pixels.
        width: of the photo that `focal` and `center` speak of, pixels.
        height: likewise.
    """
    vertices = bodies.astype("<f4").tobytes()
    content = {
        "people": len(bodies),
        "vertices": base64.b64encode(vertices).decode("ascii"),
        "faces": base64.b64encode(faces.astype("<u4").tobytes()).decode("ascii"),
        "colors": (colors / 255.0).round(4).tolist(),
        "focal": focal.tolist(),
        "center": center.tolist(),
        "size": [width, height],
    }
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")


VIEWER_HTML = """
<figure class="viewer" id="viewer">
  <div class="stage"><canvas tabindex="0" role="img"
    aria-label="The bodies in 3D before the photo; turn with the arrow keys, zoom with plus and minus"></canvas>
    <p class="failed" hidden></p></div>
  <div class="tools">
    <button type="button" data-view="photo">Photo view</button>
    <button type="button" data-view="side">Side</button>
    <button type="button" data-view="above">Above</button>
    <button type="button" data-view="behind">Behind</button>
    <label><input type="checkbox" checked data-toggle="photo"> photo</label>
    <label><input type="checkbox" checked data-toggle="bodies"> bodies</label>
  </div>
  <figcaption>Drag to turn, two fingers or Shift to move, pinch or (after a click) the wheel to zoom.
  A square of the floor is <span class="cell">0.5</span>&nbsp;m.</figcaption>
</figure>
"""

# Coordinates stay in the camera frame of the photo (x right, y down, z forward) up to the last line of the vertex
# shader, where the photo's own focal length and principal point make the clip coordinates: at the start the picture
# is the overlay, exactly.
VIEWER_SCRIPT = """
(() => {
  const root = document.getElementById('viewer'), canvas = root.querySelector('canvas');
  const fail = text => { const p = root.querySelector('.failed'); p.textContent = text; p.hidden = false; };
  const gl = canvas.getContext('webgl2', {antialias: true, premultipliedAlpha: true});
  if (!gl) {
    fail('This browser has no WebGL 2, so the 3D view cannot be drawn. The overlay picture shows the same bodies.');
    return;
  }
  const scene = JSON.parse(document.getElementById('scene').textContent);
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
  const all = new Float32Array(bytes(scene.vertices)), faces = new Uint32Array(bytes(scene.faces));
  const count = scene.people ? all.length / scene.people : 0;
  const [W, H] = scene.size, [fx, fy] = scene.focal, [cx, cy] = scene.center;

  const low = [1e9, 1e9, 1e9], high = [-1e9, -1e9, -1e9];
  all.forEach((v, i) => { low[i % 3] = Math.min(low[i % 3], v); high[i % 3] = Math.max(high[i % 3], v); });
  if (!all.length) { low.splice(0, 3, -1, -1, 3); high.splice(0, 3, 1, 1, 5); }
  const pivot = low.map((v, k) => (v + high[k]) / 2);
  const radius = Math.hypot(...low.map((v, k) => high[k] - v)) / 2;
  const back = high[2] + 0.3, floor = high[1];

  const vertexShader = `#version 300 es
    layout(location=0) in vec3 position; layout(location=1) in vec3 normal;
    uniform mat3 turn; uniform vec3 pivot, offset; uniform vec4 lens; uniform vec2 size, range;
    out vec3 at, n; out vec2 uv;
    void main() {
      at = turn * (position - pivot) + offset; n = turn * normal; uv = normal.xy;
      vec2 pixel = lens.xy * at.xy + lens.zw * at.z;
      gl_Position = vec4(2.0 * pixel.x / size.x - at.z, at.z - 2.0 * pixel.y / size.y,
        (at.z * (range.y + range.x) - 2.0 * range.y * range.x) / (range.y - range.x), at.z);
    }`;
  const fragmentShader = `#version 300 es
    precision highp float;
    in vec3 at, n; in vec2 uv; uniform int kind; uniform vec4 color; uniform sampler2D photo; out vec4 result;
    void main() {
      if (kind == 1) { result = vec4(texture(photo, uv).rgb, 1.0); return; }
      if (kind == 2) { result = vec4(color.rgb * color.a, color.a); return; }
      vec3 toward = normalize(-at), m = normalize(n); if (dot(m, toward) < 0.0) m = -m;
      float head = dot(m, toward), key = max(dot(m, normalize(vec3(-0.45, -0.75, -0.5))), 0.0);
      float gloss = 0.12 * pow(clamp(2.0 * head * key - 0.2 * key, 0.0, 1.0), 12.0);
      result = vec4(color.rgb * (0.30 + 0.42 * head + 0.36 * key) + gloss, 1.0);
    }`;
  const program = gl.createProgram();
  for (const [type, text] of [[gl.VERTEX_SHADER, vertexShader], [gl.FRAGMENT_SHADER, fragmentShader]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, text); gl.compileShader(shader); gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) {
    fail('The 3D view cannot be drawn: ' + gl.getProgramInfoLog(program));
    return;
  }
  gl.useProgram(program);
  const names = ['turn', 'pivot', 'offset', 'lens', 'size', 'range', 'kind', 'color'];
  const at = Object.fromEntries(names.map(name => [name, gl.getUniformLocation(program, name)]));

  const normals = p => {
    const n = new Float32Array(p.length);
    for (let f = 0; f < faces.length; f += 3) {
      const [a, b, c] = [faces[f] * 3, faces[f + 1] * 3, faces[f + 2] * 3];
      const e = [0, 1, 2].map(k => p[b + k] - p[a + k]), g = [0, 1, 2].map(k => p[c + k] - p[a + k]);
      for (let k = 0; k < 3; k++) {
        const i = (k + 1) % 3, j = (k + 2) % 3, v = e[i] * g[j] - e[j] * g[i];
        n[a + k] += v; n[b + k] += v; n[c + k] += v;
      }
    }
    for (let i = 0; i < n.length; i += 3) {
      const length = Math.hypot(n[i], n[i + 1], n[i + 2]) || 1;
      n[i] /= length; n[i + 1] /= length; n[i + 2] /= length;
    }
    return n;
  };
  const shape = (positions, second, width, index) => {
    const array = gl.createVertexArray(); gl.bindVertexArray(array);
    [[0, positions, 3], [1, second, width]].forEach(([slot, data, parts]) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer()); gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(slot); gl.vertexAttribPointer(slot, parts, gl.FLOAT, false, 0, 0);
    });
    if (index) {
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, index, gl.STATIC_DRAW);
    }
    return array;
  };
  const bodies = [...Array(scene.people).keys()].map(k => {
    const p = all.subarray(k * count, (k + 1) * count); return shape(p, normals(p), 3, faces);
  });
  const ray = (x, y) => [(x - cx) / fx * back, (y - cy) / fy * back, back];
  const sheetCorners = new Float32Array([...ray(0, 0), ...ray(0, H), ...ray(W, 0), ...ray(W, H)]);
  const sheet = shape(sheetCorners, new Float32Array([0, 0, 0, 1, 1, 0, 1, 1]), 2);
  const lines = [], cell = 0.5 * Math.max(1, Math.ceil(radius / 10));
  const [x0, , z0] = low.map(v => Math.floor((v - 0.5) / cell));
  const [x1, , z1] = high.map(v => Math.ceil((v + 0.5) / cell));
  for (let i = x0; i <= x1; i++) lines.push(i * cell, floor, z0 * cell, i * cell, floor, z1 * cell);
  for (let i = z0; i <= z1; i++) lines.push(x0 * cell, floor, i * cell, x1 * cell, floor, i * cell);
  root.querySelector('.cell').textContent = cell;
  const grid = shape(new Float32Array(lines), new Float32Array(lines.length), 3);

  const texture = gl.createTexture(), image = document.getElementById('photo');
  const upload = () => {
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, image);
    const set = (what, how) => gl.texParameteri(gl.TEXTURE_2D, what, how);
    set(gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE); set(gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
    set(gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
    gl.generateMipmap(gl.TEXTURE_2D); draw();
  };

  // The view: yaw and pitch about the pivot, and where the pivot lies before the camera.
  const half = Math.atan(Math.min(W / fx, H / fy) / 2), far = Math.max(radius * 1.1 / Math.sin(half), 0.5);
  const centred = (yaw, pitch) => ({yaw, pitch, o: [(W / 2 - cx) / fx * far, (H / 2 - cy) / fy * far, far]});
  const views = {
    photo: {yaw: 0, pitch: 0, o: pivot}, side: centred(Math.PI / 2, 0),
    above: centred(0, Math.PI / 2), behind: centred(Math.PI, 0),
  };
  let view = {...views.photo, o: [...pivot]}, shown = {photo: true, bodies: true}, moving = 0;
  const atStart = () => Math.hypot(view.yaw, view.pitch, ...view.o.map((v, k) => v - pivot[k])) < 1e-4;

  function draw() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const [w, h] = [canvas.clientWidth, canvas.clientHeight].map(side => Math.round(side * ratio));
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    gl.viewport(0, 0, w, h); gl.enable(gl.DEPTH_TEST);
    gl.clearColor(0, 0, 0, 0); gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const [c, s] = [Math.cos(view.yaw), Math.sin(view.yaw)], [d, t] = [Math.cos(view.pitch), Math.sin(view.pitch)];
    gl.uniformMatrix3fv(at.turn, false, [c, s * t, -s * d, 0, d, t, s, -c * t, c * d]);
    gl.uniform3fv(at.pivot, pivot); gl.uniform3fv(at.offset, view.o);
    gl.uniform4f(at.lens, fx, fy, cx, cy); gl.uniform2f(at.size, W, H);
    const reach = Math.hypot(...view.o) + radius + Math.hypot(...ray(0, 0)) + Math.hypot(...ray(W, H));
    gl.uniform2f(at.range, Math.max(0.02, reach / 5000), reach);
    if (shown.bodies) bodies.forEach((body, k) => {
      gl.uniform1i(at.kind, 0); gl.uniform4f(at.color, ...scene.colors[k], 1); gl.bindVertexArray(body);
      gl.drawElements(gl.TRIANGLES, faces.length, gl.UNSIGNED_INT, 0);
    });
    if (shown.photo && image.naturalWidth) {
      // From behind the photo is left out: it would hide the bodies.
      gl.enable(gl.CULL_FACE); gl.uniform1i(at.kind, 1); gl.bindVertexArray(sheet);
      gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4); gl.disable(gl.CULL_FACE);
    }
    if (!atStart()) {
      gl.enable(gl.BLEND); gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
      gl.uniform1i(at.kind, 2); gl.uniform4f(at.color, 0.5, 0.54, 0.58, 0.7); gl.bindVertexArray(grid);
      gl.drawArrays(gl.LINES, 0, lines.length / 3); gl.disable(gl.BLEND);
    }
  }
  const later = () => { cancelAnimationFrame(moving); moving = requestAnimationFrame(draw); };
  const go = name => {
    const from = {...view, o: [...view.o]}, to = views[name], begin = performance.now();
    from.yaw -= 2 * Math.PI * Math.round((from.yaw - to.yaw) / (2 * Math.PI));
    const time = matchMedia('(prefers-reduced-motion: reduce)').matches ? 1 : 350;
    const step = now => {
      const x = Math.min(1, Math.max(0, (now - begin) / time)), k = x * x * (3 - 2 * x);
      const mix = (a, b) => x === 1 ? b : a + (b - a) * k, o = to.o.map((v, i) => mix(from.o[i], v));
      view = {yaw: mix(from.yaw, to.yaw), pitch: mix(from.pitch, to.pitch), o};
      draw(); if (x < 1) moving = requestAnimationFrame(step);
    };
    cancelAnimationFrame(moving); moving = requestAnimationFrame(step);
  };
  const within = (value, limit) => Math.max(-limit, Math.min(limit, value));
  const rotate = (x, y) => { view.yaw += x; view.pitch = within(view.pitch + y, 1.5707); later(); };
  const zoom = k => { k = Math.max(k, 0.3 / view.o[2]); view.o = view.o.map(v => v * k); later(); };
  const pan = (x, y) => {
    const k = W / canvas.clientWidth * view.o[2]; view.o[0] += x * k / fx; view.o[1] += y * k / fy; later();
  };

  root.querySelectorAll('[data-view]').forEach(b => b.addEventListener('click', () => go(b.dataset.view)));
  root.querySelectorAll('[data-toggle]').forEach(b =>
    b.addEventListener('change', () => { shown[b.dataset.toggle] = b.checked; later(); }));
  const fingers = new Map();
  canvas.addEventListener('pointerdown', e => {
    cancelAnimationFrame(moving);
    fingers.set(e.pointerId, [e.clientX, e.clientY]); canvas.setPointerCapture(e.pointerId);
  });
  for (const name of ['pointerup', 'pointercancel', 'lostpointercapture'])
    canvas.addEventListener(name, e => fingers.delete(e.pointerId));
  const spread = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
  canvas.addEventListener('pointermove', e => {
    const old = fingers.get(e.pointerId); if (!old) return;
    const wide = fingers.size > 1 ? spread() : 0, [dx, dy] = [e.clientX - old[0], e.clientY - old[1]];
    fingers.set(e.pointerId, [e.clientX, e.clientY]);
    if (fingers.size > 1) { pan(dx / 2, dy / 2); zoom(wide / Math.max(spread(), 1)); }
    else if (e.shiftKey || e.buttons & 6) pan(dx, dy); else rotate(-dx * 0.008, dy * 0.008);
  });
  canvas.addEventListener('contextmenu', e => e.preventDefault());
  // Only once the view was clicked: the wheel must still scroll the page past it.
  canvas.addEventListener('wheel', e => {
    if (document.activeElement !== canvas) return;
    e.preventDefault(); zoom(Math.exp(within(e.deltaY, 60) * 0.002));
  }, {passive: false});
  canvas.addEventListener('dblclick', () => go('photo'));
  const keys = {
    ArrowLeft: () => rotate(0.1, 0), ArrowRight: () => rotate(-0.1, 0),
    ArrowUp: () => rotate(0, -0.1), ArrowDown: () => rotate(0, 0.1),
    '+': () => zoom(0.9), '=': () => zoom(0.9), '-': () => zoom(1.1), '0': () => go('photo'),
  };
  canvas.addEventListener('keydown', e => { if (keys[e.key]) { e.preventDefault(); keys[e.key](); } });
  new ResizeObserver(later).observe(canvas);
  if (image.complete && image.naturalWidth) upload(); else image.addEventListener('load', upload);
})();
"""
