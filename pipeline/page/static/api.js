// Where data comes from: the server.

/** An answer that is an error; `message` is one line for the user. */
export class ApiError extends Error {
  constructor(message, { status = 0, hint = "", code = "" } = {}) {
    super(message);
    Object.assign(this, { status, hint, code });
  }
}

const meta = (name, page = document) => page.querySelector(`meta[name="autolabel-${name}"]`);

async function failure(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    body = { message: `the server answered ${response.status}` };
  }
  return new ApiError(body.message ?? `the server answered ${response.status}`, { status: response.status, hint: body.hint, code: body.error });
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(`${options.method ? "not saved: " : ""}the server does not answer`, { code: "offline" });
  }
  if (!response.ok) throw await failure(response);
  return response;
}

// The browser keeps these; labels that were made anew have other addresses.
const LABELS = new Set(["plane", "mini", "thumb", "picture"]);
const version = meta("labels").content;

// A list as value becomes a repeated parameter.
const address = (path, given) => {
  const params = LABELS.has(path) && version ? { ...given, v: version } : given;
  const pairs = Object.entries(params).flatMap(([key, value]) => [value].flat().map((one) => [key, one]));
  return pairs.length ? `api/${path}?${new URLSearchParams(pairs)}` : `api/${path}`;
};

async function write(path, body) {
  const headers = { "Content-Type": "application/json", "X-Autolabel-Token": meta("token").content };
  return (await send(address(path, {}), { method: "POST", body: JSON.stringify(body), headers })).json();
}

/** Take the token of a server that was started again; what it serves must be what this page shows. */
async function renewToken() {
  const page = new DOMParser().parseFromString(await (await send("./", {})).text(), "text/html");
  if (meta("labels", page)?.content !== version) {
    throw new ApiError("the labels were made anew since this page was loaded", { hint: "load the page again" });
  }
  meta("token").content = meta("token", page).content;
}

class Server {
  url = (path, params = {}) => address(path, params);
  json = async (path, params = {}, signal = undefined) => (await send(address(path, params), { signal })).json();
  bytes = async (path, params = {}, signal = undefined) => (await send(address(path, params), { signal })).arrayBuffer();
  post = async (path, body) => {
    try {
      return await write(path, body);
    } catch (error) {
      if (error.status !== 403) throw error;
      await renewToken();
      return write(path, body);
    }
  };
}

export const api = new Server();
